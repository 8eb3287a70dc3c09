"""A form on which people compare replies: one HTML file that works offline and saves a CSV; and a plain CSV."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pandas as pd

from star_tl.data.pairs import load_pairs
from star_tl.errors import StarError
from star_tl.evaluation.evaluated import Evaluation
from star_tl.evaluation.human import COLUMNS, QUESTIONS, blinded, form_id
from star_tl.files import output_folder, replacing, unwritable
from star_tl.view.page import script_hash

CSS = """
:root { color-scheme: light dark; } body { font: 17px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 60rem;
padding: 1.5rem; } fieldset { border: 1px solid #8886; border-radius: .5rem; margin: 1.5rem 0; padding: 1rem;
min-width: 0; }
.replies { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
.text { background: #8881; border-radius: .4rem; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.turn { border-left: 3px solid #8888; margin: .4rem 0; padding-left: .7rem; white-space: pre-wrap;
overflow-wrap: anywhere; }
label { margin-right: 1.2rem; white-space: nowrap; } .answers { display: block; }
.bar { background: Canvas; border-top: 1px solid #8886; bottom: 0; padding: .7rem 0;
position: sticky; } button { font: inherit; padding: .4rem 1rem; } legend { font-weight: 600; }
"""
JS = """
const data = JSON.parse(document.getElementById("data").textContent), list = document.getElementById("items");
const make = (tag, text, className) => {
  const e = document.createElement(tag); e.textContent = text ?? "";
  if (className) e.className = className;
  return e; };
for (const item of data.items) {
  const box = make("fieldset"); box.id = `item-${item.item}`;
  box.append(make("legend", `${item.item} of ${data.items.length}`));
  for (const turn of item.turns) { const p = make("div", turn, "turn"); p.dir = "auto"; box.append(p); }
  const replies = make("div", "", "replies");
  for (const side of ["a", "b"]) {
    const part = make("section"); part.append(make("h3", side.toUpperCase()));
    const text = make("div", item[side], "text"); text.dir = "auto"; part.append(text); replies.append(part); }
  box.append(replies);
  for (const [name, question] of data.questions) {
    const row = make("p", question), answers = make("span", "", "answers"); row.append(answers);
    row.setAttribute("role", "radiogroup"); row.setAttribute("aria-label", question);
    for (const answer of ["A", "B", "same"]) {
      const label = make("label"), radio = make("input");
      radio.type = "radio"; radio.name = `${name}-${item.item}`; radio.value = answer;
      label.append(radio, ` ${answer}`); answers.append(label); }
    box.append(row); }
  list.append(box); }
const chosen = name => document.querySelector(`input[name="${name}"]:checked`)?.value ?? "";
const quoted = text => `"${String(text).replaceAll('"', '""')}"`;
const count = () => { const given = document.querySelectorAll("#items input:checked").length;
  document.getElementById("count").textContent = `${given} of ${data.items.length * data.questions.length} answered`; };
list.addEventListener("change", count); count();
document.getElementById("save").addEventListener("click", () => {
  const rater = document.getElementById("rater");
  if (!rater.value.trim()) { rater.focus(); return; }
  const rows = data.items.map(item => [data.form, rater.value.trim(), item.item,
    ...data.questions.map(([name]) => chosen(`${name}-${item.item}`))]);
  const text = [data.columns, ...rows].map(row => row.map(quoted).join(",")).join("\\r\\n") + "\\r\\n";
  const link = make("a"); link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = `ratings-${rater.value.trim().replace(/[^\\p{L}\\p{N}-]+/gu, "_")}.csv`; link.click(); });
"""


def write_form(result: Evaluation, folder: str | Path) -> list[Path]:
    """``form.html``, ``form.csv`` for those who would rather use a table, and ``key.csv``, which raters must not see.

    Raises:
        StarError: no two replies differ, or the folder cannot be written to.
    """
    items, place = blinded(result), output_folder(folder)
    if items.empty:
        raise StarError("No two replies differ: there is nothing to compare.")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(place, error) from None
    asked = items.assign(prompt=[" / ".join(_turns(result, p)) for p in items.prompt_id])
    plain = asked[["item", "prompt", "a", "b"]].assign(form=form_id(items), rater="", trait="", better="")
    tables = {"form.csv": plain, "key.csv": items[["item", "prompt_id", "arm_a", "arm_b"]]}
    with replacing(place / "form.html") as partial:
        partial.write_text(_page(result, items), encoding="utf-8")
    for name, table in tables.items():
        with replacing(place / name) as partial:
            table.to_csv(partial, index=False)
    return [place / "form.html", *(place / name for name in tables)]


def _turns(result: Evaluation, prompt_id: str) -> list[str]:
    names = {"user": result.task.roles["user"], "assistant": result.task.roles["assistant"], "system": "instruction"}
    return [f"{names[m['role']]}: {m['content']}" for m in result.prompts[int(prompt_id[1:])]]


def _page(result: Evaluation, items: pd.DataFrame) -> str:
    trait = load_pairs(result.task.trait).trait
    asked = f"Which reply shows more of this: {trait.description or trait.name}"
    data = {
        "form": form_id(items),
        "columns": COLUMNS,
        "questions": list(zip(QUESTIONS, (asked, "Which is the better reply?"), strict=True)),
        "items": [
            {"item": int(r.item), "turns": _turns(result, r.prompt_id), "a": r.a, "b": r.b} for r in items.itertuples()
        ],
    }
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {script_hash(JS)}; base-uri 'none'; "
        "form-action 'none'"
    )
    title = html.escape(trait.name.replace("_", " "))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Two replies: {title}</title>
<style>{CSS}</style>
</head>
<body>
<h1>Which of two replies?</h1>
<p>Read what was said, then both replies, and answer from what stands there. Leave a question open if you cannot tell
what is meant; say <em>same</em> if neither has more. Save at the end: the file goes back to whoever sent you this.</p>
<p><label for="rater">Your name or number</label> <input id="rater" autocomplete="off"></p>
<main id="items"></main>
<div class="bar"><button id="save" type="button">Save the ratings</button> <span id="count"></span></div>
<script type="application/json" id="data">{json.dumps(data).replace("<", chr(92) + "u003c")}</script>
<script>{JS}</script>
</body>
</html>
"""
