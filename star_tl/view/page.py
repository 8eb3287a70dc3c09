"""A self-contained HTML page with plotly figures.

The page makes no network request, and its content security policy forbids any: plotly.js is inlined
once, figures are JSON in elements that do not execute, and only the page's own two scripts may run,
known by their hashes. It follows the reader's light or dark setting and prints.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from star_tl.view.plots import DIVERGING_DARK

CSS = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5a636b; --paper: #ffffff; --card: #f5f6f7; --line: #d9dde0;
  --link: #0060a0; --mark: #ffe08a; --mark-ink: #1c2024; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a3abb2; --paper: #14171a; --card: #1d2125;
  --line: #363c42; --link: #7cc0f0; --mark: #6b5200; --mark-ink: #fff3cf; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
header, nav, main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; } article h3 { margin-top: 0; }
h4 { font-size: .85rem; margin: 0 0 .3rem; color: var(--soft); font-weight: 600; }
.finding { font-size: 1.15rem; max-width: 48rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; max-width: 48rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: 1rem 0 0; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; background: var(--paper); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.scroll { overflow-x: auto; background: linear-gradient(to right, var(--paper) 40%, transparent) left / 3rem 100%
  no-repeat local, linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--line), transparent) left / .9rem 100% no-repeat scroll,
  linear-gradient(to left, var(--line), transparent) right / .9rem 100% no-repeat scroll; }
figure { margin: 1.25rem 0 2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; } thead th { vertical-align: bottom; }
th:first-child, td:first-child, .settings td { text-align: left; }
td { white-space: nowrap; } .settings td { white-space: normal; overflow-wrap: anywhere; }
.range { display: block; color: var(--soft); font-size: .92em; }
.settings { width: auto; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem; max-width: 46rem; }
article { background: var(--card); border-radius: .5rem; padding: 1rem 1.1rem; margin: 1rem 0; break-inside: avoid; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .4rem; }
.prompt { border-left: 3px solid var(--line); padding-left: .75rem; margin: 0 0 .9rem; }
.replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
.warning { border-left: 4px solid #E69F00; padding: .4rem .8rem; background: var(--card); max-width: 48rem; }
summary { cursor: pointer; color: var(--link); padding: .4rem 0; }
mark { background: var(--mark); color: var(--mark-ink); border-radius: .2em; padding: 0 .1em; }
footer { padding-top: 2rem; padding-bottom: 3rem; color: var(--soft); font-size: .9rem; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --card: #fff; --line: #bbb;
    --mark: #ffe08a; --mark-ink: #000; }
  body { font-size: 10.5pt; } nav, .skip, .modebar { display: none !important; } .scroll { overflow: visible; }
  header, main, footer { max-width: none; padding-left: 0; padding-right: 0; } table { font-size: 9pt; }
  article { border: 1px solid var(--line); } figure, tr { break-inside: avoid; } .plot { zoom: .8; }
  h2, h3, dt, section > p { break-after: avoid; } p { break-inside: avoid; }
  .replies { grid-template-columns: repeat(3, 1fr); }
  mark { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

# Figures follow the page: its ink, its light or dark middle of the colour scale, the width of paper. A figure is
# drawn when it comes near the window, or all are for paper: the page opens sooner.
JS = """
const paper = matchMedia("print"), night = matchMedia("(prefers-color-scheme: dark)");
const read = id => JSON.parse(document.getElementById(id).textContent);
const darkScale = read("dark-scale"), all = [...document.querySelectorAll(".plot")], drawn = new Set();
// A phone: a map, a pair of charts or one with names beside it no narrower than it can be read, others as narrow as
// the page; legends below, and words in as many lines as they need.
function narrow(layout, width) {
  const wide = "xaxis2" in layout || Object.keys(layout).some(key => key.startsWith("coloraxis"))
    || layout.annotations?.some(note => note.showarrow);
  layout.width = Math.max(width, wide ? 0.75 * layout.width : 0, 340);
  const wrap = (text, letters) => (text ?? "").replaceAll("<br>", " ").split(" ").reduce((lines, word) =>
    (lines.at(-1) + word).length < letters ? [...lines.slice(0, -1), `${lines.at(-1)} ${word}`.trim()]
      : [...lines, word], [""]);
  const {title, xaxis} = layout, letters = width / 6.4, grow = (side, lines) => {
    const more = 16 * (lines.length - 1);
    layout.margin = {...layout.margin, [side]: (layout.margin?.[side] ?? 60) + more};
    layout.height += more;
    return lines.join("<br>");
  };
  if (title?.font) {
    title.font.size = 13;
    const before = (title.subtitle?.text ?? "").split("<br>").length - 1;
    layout.margin.t -= 17 * before;
    layout.height -= 17 * before;
    title.text = `<b>${grow("t", wrap(title.text.replace(/<[/]?b>/g, ""), 0.85 * letters))}</b>`;
    if (title.subtitle) title.subtitle.text = grow("t", wrap(title.subtitle.text, letters));
  }
  if (!wide && xaxis?.title?.text) xaxis.title.text = grow("b", wrap(xaxis.title.text, 0.7 * letters));
  if (!layout.showlegend) return;
  layout.legend = {...layout.legend, orientation: "h", x: 0, xanchor: "left", y: -0.28, yanchor: "top"};
  layout.margin = {...layout.margin, b: 150};
  layout.height += 60;
}
function draw(div) {
  const {data, layout} = read(div.id + "-data");
  layout.font = {...layout.font, color: getComputedStyle(document.documentElement).getPropertyValue("--ink").trim()};
  if (paper.matches) layout.width = Math.min(layout.width, 840);
  else if (div.parentElement.clientWidth < layout.width) narrow(layout, div.parentElement.clientWidth);
  if (night.matches && !paper.matches)
    for (const key in layout) if (key.startsWith("coloraxis")) layout[key].colorscale = darkScale;
  Plotly.react(div, data, layout, {displaylogo: false});
  drawn.add(div);
}
const near = new IntersectionObserver(
  entries => entries.forEach(entry => entry.isIntersecting && !drawn.has(entry.target) && draw(entry.target)),
  {rootMargin: "50% 0px"});
for (const div of all) near.observe(div);
paper.addEventListener("change", () => all.forEach(draw));
night.addEventListener("change", () => drawn.forEach(draw));
"""


def page(title: str, lead: str, sections: Mapping[str, tuple[str, str]], footer: str) -> str:
    """The whole document.

    Args:
        title: plain text.
        lead: HTML that stands under the title.
        sections: by id, a heading and its HTML; they are linked at the top.
        footer: plain text.
    """
    title = html.escape(title)
    links = "".join(f'<li><a href="#{key}">{heading}</a></li>' for key, (heading, _) in sections.items())
    main = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-heading"><h2 id="{key}-heading">{heading}</h2>\n{body}</section>'
        for key, (heading, body) in sections.items()
    )
    plotly = get_plotlyjs()
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {script_hash(plotly)} {script_hash(JS)}; base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{CSS}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>{title}</h1>
{lead}
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main">
{main}
</main>
<footer>{html.escape(footer)}</footer>
{_json("dark-scale", json.dumps(DIVERGING_DARK))}
<script>{plotly}</script>
<script>{JS}</script>
</body>
</html>
"""


def figure(name: str, fig: go.Figure, caption: str) -> str:
    """A figure that the page's script draws; ``name`` is its id, ``caption`` HTML."""
    title = html.escape(html.unescape(re.sub(r"<[^>]+>", "", fig.layout.title.text)))
    place = f'style="min-height: {fig.layout.height}px"'  # so that nothing moves when it is drawn
    plot = f'<div class="plot" id="{name}" role="img" aria-label="{title}" {place}></div>'
    return (
        f"<figure>{scroll(title, plot)}<figcaption>{caption}</figcaption></figure>\n"
        f"{_json(f'{name}-data', str(fig.to_json()))}\n"
    )


def scroll(label: str, content: str) -> str:
    """A region that scrolls by itself where it is wider than the page, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{content}</div>'


def _json(name: str, data: str) -> str:
    """JSON as an element that does not execute; no ``<`` in it can end the element."""
    return f'<script type="application/json" id="{name}">{data.replace("<", chr(92) + "u003c")}</script>'


def script_hash(script: str) -> str:
    """How a content security policy names a script that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
