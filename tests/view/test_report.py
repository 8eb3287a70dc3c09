"""The report says what was found, keeps all text as text, and needs nothing but itself."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from plotly.offline import get_plotlyjs
from synthetic import SCRIPT, dose, result, summary

from star_tl.evaluation.strength import DRIFT_LIMIT
from star_tl.evaluation.sweep import Comparison
from star_tl.locus import Locus
from star_tl.pipeline import TESTED_ON_ITS_OWN
from star_tl.view.report import _dose, _highlight, finding, in_short, write_report, write_sweep
from star_tl.view.report_words import reading

FIGURES = ["arms-figure", "choice", "layers", "heads", "tokens", "pair", "dose-figure"]
NO_BREAK = "\N{NO-BREAK SPACE}"


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report") / "report.html", result())


@pytest.fixture(scope="module")
def text(report):
    return report.read_text(encoding="utf-8")


def changed(**steered) -> object:
    """The finding's input with other numbers for the steered arm."""
    made = result()
    row = made.summary["arm"] == "steered"
    for column, value in steered.items():
        made.summary.loc[row, column] = value
    return made


def test_the_finding_is_said_in_plain_words():
    said = finding(result()).replace(NO_BREAK, " ")
    assert said == (
        "At layer 5 drift buys most of the trait (100 % of resamples agree); adding the vector there, on the last "
        "prompt token, raises coherent replies that show it from 36 % to 89 % (+53 points, 95 % interval +44 to +62). "
        "Random vectors of the same norm give 38 %. Asking for the trait in an instruction gives 93 %."
    )


def test_the_finding_does_not_call_a_layer_chosen_that_the_pairs_do_not_single_out():
    made, gradients = result(), result().attribution.gradients.clone()
    gradients[..., 1] = 1.0  # another direction than the pairs' own does far more
    made.attribution = dataclasses.replace(made.attribution, gradients=gradients)
    said = finding(made)
    assert said.startswith("The pairs do not single out a layer: 5 gains most, but no more than chance (p ")
    assert "; layer 5 was taken; adding the vector there" in said
    assert "agree" not in said
    assert "buys most" not in said


def test_two_prompts_are_no_evidence_whatever_their_interval_says():
    """Equal differences have a bootstrap interval without width."""
    made = changed(difference=100.0, low=100.0, high=100.0, p_value=1.0)
    made.prompts = made.prompts[:2]
    assert "on too few prompts to tell from chance" in finding(made)
    assert "too few prompts to tell that from chance" in in_short(made)[1]
    assert "more than chance explains" not in in_short(made)[1]


def test_terms_are_explained_of_the_arms_that_there_are(text):
    full = reading({"unsteered", "steered", "located", "reply_mean", "primed_steered"})
    for words in (
        "Located: ",
        "Reply mean: the mean difference over reply tokens, added at the middle",
        "Primed steered: ",
    ):
        assert words in full
    assert "Reply mean everywhere" not in full
    assert "Arms" not in reading(())
    assert "Reply mean everywhere: " in text


def test_the_limit_of_a_runs_figure_is_its_own():
    made = result()
    made.intervention = SimpleNamespace(target=0.02)
    shown = json.loads(re.search(r'id="dose-figure-data">(.*?)</script>', _dose(made), re.DOTALL)[1])
    (limit,) = [trace for trace in shown["data"] if trace["name"].startswith("drift limit")]
    assert limit["y"] == [0.02, 0.02]


def test_replies_that_earned_nothing_have_chosen_nothing():
    made = result()
    made.intervention = SimpleNamespace(earned=False)
    assert "is a guess" in in_short(made)[2]
    made.intervention = SimpleNamespace(earned=True)
    assert "chosen by replies to other prompts" in in_short(made)[2]
    made.settings |= {"pairs": f"1; {TESTED_ON_ITS_OWN}"}
    assert "chosen by replies;" in in_short(made)[2], "there are no other prompts"


def test_a_layer_of_a_tie_that_replies_chose_is_called_that():
    made = result()
    locus = dataclasses.replace(made.vector.locus, hook_point="blocks.4.hook_resid_post")
    made.vector = dataclasses.replace(made.vector, locus=locus)
    said = finding(made).replace(NO_BREAK, " ")
    assert "(100 % of resamples agree); of the layers that tie, replies chose 4; adding the vector at layer 4" in said
    assert "chosen by replies" in in_short(made)[2]
    assert "single out the layer where it was added" in in_short(result())[2]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"low": -3.0}, "which may be chance"),
        ({"difference": -20.0, "low": -30.0, "high": -10.0}, "lowers coherent replies"),
        ({"p_value": 0.06}, "which may be chance"),
        ({"difference": float("nan"), "low": float("nan"), "high": float("nan")}, "too few prompts"),
    ],
)
def test_the_finding_claims_no_more_than_the_interval_allows(numbers, words):
    said = finding(changed(**numbers))
    assert words in said
    assert "raises" not in said


def test_the_finding_names_another_layer_and_several_positions():
    made = result()
    made.vector = dataclasses.replace(made.vector, locus=Locus("blocks.3.hook_resid_post", (-2,)))
    said = finding(made)
    assert "At layer 5 drift buys" in said
    assert "at layer 3, on prompt positions -2" in said


def test_the_finding_does_without_baselines():
    made = result()
    made.summary = summary().head(1)
    assert finding(made).endswith("agree).")


def test_the_file_is_self_contained_and_small(report, text):
    assert report.stat().st_size < 8_000_000
    assert text.count(get_plotlyjs()) == 1
    elements = Elements(text).found
    links = [value for _, attrs in elements for key, value in attrs.items() if key in ("src", "href")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not [tag for tag, _ in elements if tag in ("link", "img", "iframe", "object")]
    assert any("default-src 'none'" in (attrs.get("content") or "") for _, attrs in elements)


def test_text_of_models_and_users_stays_text(text):
    assert text.count("</script>") == text.count("<script>") + text.count('<script type="application/json"')
    assert "&lt;script&gt;document.title=" in text
    assert SCRIPT not in text
    assert "my &lt;i&gt;cat&lt;/i&gt; &amp; I" in text
    assert "<i>cat" not in text
    assert "&lt;img src=x" in text
    assert "<img" not in text


def test_a_hostile_trait_name_stays_a_name(tmp_path):
    made = result()
    made.trait = name = '"><script>alert(1)</script>'
    made.attribution = dataclasses.replace(made.attribution, trait=name)
    page = write_report(tmp_path / "r.html", made).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    labels = [attrs["aria-label"] for tag, attrs in Elements(page).found if attrs.get("role") == "img"]
    assert any('"><script>alert(1)</script>' in label for label in labels)


def test_every_part_is_there(text):
    for heading in (
        "What steering did",
        "Replies side by side",
        "Where the trait is carried",
        "Dose–response",
        "How to",
    ):
        assert heading in text
    figures = [attrs["id"] for _, attrs in Elements(text).found if attrs.get("class") == "plot"]
    assert figures == FIGURES
    assert text.count("<article>") == len(result().prompts), "all prompts, the later ones folded"
    assert "<summary>All 9 prompts</summary>" in text
    assert "<mark>sorry</mark>" in text
    assert "not coherent" in text
    assert f"89{NO_BREAK}%" in text
    assert "+44 to +62" in text
    assert "&lt; 0.001" in text
    assert "−24" in text


def test_markers_are_marked_as_whole_words_longest_first():
    marked = _highlight("Thank you, thank YOU very much; thankyou <b>", "thank you, thank")
    assert marked == "<mark>Thank you</mark>, <mark>thank YOU</mark> very much; thankyou &lt;b&gt;"
    assert _highlight("a < b", "") == "a &lt; b"
    assert _highlight("我谢谢你 <🙏>", "谢谢, 🙏") == "我<mark>谢谢</mark>你 &lt;<mark>🙏</mark>&gt;"


def test_arms_and_strengths_may_be_missing(tmp_path):
    made = result()
    made.samples = made.samples[made.samples["arm"] != "primed"]
    made.dose = dose().head(0)
    page = write_report(tmp_path / "r.html", made).read_text(encoding="utf-8")
    assert "No strengths were tried." in page
    assert "<h4>primed</h4>" not in page


def test_an_earlier_file_survives_a_failure(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("earlier")
    broken = result()
    broken.prompts = [("p0", [{"role": "nobody", "content": "?"}])]
    with pytest.raises(ValueError, match="nobody"):
        write_report(path, broken)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_offline_without_a_complaint(report, browser, scheme):
    context = browser.new_context(color_scheme=scheme)
    context.set_offline(True)
    page = context.new_page()
    said, asked, failed = [], [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto(report.as_uri())
    page.locator("#arms-figure").scroll_into_view_if_needed()
    page.locator("#arms-figure .main-svg").first.wait_for()
    print(f"opened with its first figure in {page.evaluate('performance.now()') / 1000:.2f} s")
    assert page.locator("#dose-figure .main-svg").count() == 0, "what is far below can wait"
    for name in FIGURES:
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.locator(f"#{name} .main-svg").first.wait_for()

    assert said == []
    assert failed == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.title() == "Emotional support in tiny"
    assert page.get_by_text("<script>document.title='broken'</script>").first.is_visible()
    assert page.locator(".plot .heatmaplayer image").count() == 6, "gain, two maps by layer, heads, two by token"
    labels = page.locator("#pair .xtick text").all_text_contents()
    assert "<|begin_of_text|>" in labels
    assert "␣<b>low</b>" in labels
    assert "$" in labels

    middle = "document.getElementById('heads').layout.coloraxis.colorscale[2][1]"
    assert page.evaluate(middle) == {"light": "#F7F7F7", "dark": "#22262B"}[scheme]
    page.emulate_media(media="print")
    for _ in range(50):  # the page's policy forbids the eval that Playwright would wait with
        if page.evaluate(middle) == "#F7F7F7":
            break
        page.wait_for_timeout(100)
    assert page.evaluate(middle) == "#F7F7F7"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    context.close()


def test_on_paper_stand_all_figures_of_a_report_that_was_never_scrolled(report, browser):
    page = browser.new_page()
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    for name in FIGURES:
        page.locator(f"#{name} .main-svg").first.wait_for(state="attached")
    page.close()


def test_the_report_fits_a_narrow_screen_and_the_keyboard(report, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.close()


def test_on_a_phone_at_night_figures_are_dark_and_no_words_lie_on_one_another(report, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.goto(report.as_uri())
    for name in ("heads", "dose-figure"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.locator(f"#{name} .main-svg").first.wait_for()
    assert page.evaluate("document.getElementById('heads').layout.coloraxis.colorscale[2][1]") == "#22262B"
    legend, subtitle = (
        page.locator(f"#dose-figure {part}").first.bounding_box() for part in (".legend", ".gtitle-subtitle")
    )
    assert legend["y"] >= subtitle["y"] + subtitle["height"]
    for figure in page.locator(".plot").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()
        frame = figure.locator(".main-svg").first.bounding_box()
        for words in (".gtitle", ".gtitle-subtitle", ".xtitle"):
            for box in (part.bounding_box() for part in figure.locator(words).all()):
                assert box["x"] >= frame["x"] - 1, (figure.get_attribute("id"), words)
                assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1, (figure.get_attribute("id"), words)
    page.close()


def test_three_plain_sentences_come_first_and_claim_no_more_than_was_found(text):
    asked, came_out, believe = in_short(result())
    assert text.index(asked.split(" in")[0]) < text.index("In the terms of the method")
    assert f"36{NO_BREAK}%" in came_out
    assert "more than chance explains" in came_out
    assert "an instruction that asks for it does as much or more" in believe
    made = result()
    made.summary.loc[1, ["low", "high"]] = [-4.0, 61.0]
    made.settings |= {"pairs": f"1; {TESTED_ON_ITS_OWN}"}
    flat = made.attribution
    made.attribution = dataclasses.replace(flat, gradients=torch.zeros_like(flat.gradients))
    first = dataclasses.replace(made.vector.locus, hook_point="blocks.0.hook_resid_post")  # of equal ones it is taken
    made.vector = dataclasses.replace(made.vector, locus=first)
    _, came_out, believe = in_short(made)
    assert "may be chance" in came_out
    assert "do not single out a layer" in believe
    assert "tested on the contexts" in believe


def test_the_layer_is_said_to_be_chosen_by_its_gain_and_by_nothing_else(text):
    assert "A layer is judged by its gain" in text
    assert "by what it adds" not in text


def test_the_chosen_strength_and_the_limit_are_marked_and_a_grids_end_is_warned_of(tmp_path, text):
    shown = json.loads(re.search(r'id="dose-figure-data">(.*?)</script>', text, re.DOTALL)[1])
    assert "chosen: 1" in [note["text"] for note in shown["layout"]["annotations"]]
    (limit,) = [trace for trace in shown["data"] if trace["name"].startswith("drift limit")]
    assert limit["y"] == [DRIFT_LIMIT, DRIFT_LIMIT]
    assert "is the largest that was tried" not in text
    made = result()
    made.dose = made.dose[made.dose.strength <= 1]
    page = write_report(tmp_path / "r.html", made).read_text(encoding="utf-8")
    assert "is the largest that was tried" in page


def test_a_sweep_has_a_report_of_the_same_form(tmp_path):
    rows = []
    ways = ((-1, 0.0, 0.2, 0.0), (3, 1.0, 0.5, 0.1), (3, 2.0, 1.0, 0.9), (5, 1.0, 0.3, 0.02))
    for layer, strength, rate, drift in ways:
        steered = layer >= 0
        for i in range(10):
            row = {"arm": "steered" if steered else "unsteered", "locus": f"layer <{layer}>" if steered else ""}
            if layer == 5:
                row["locus"] = "blocks.5.hook_resid_post"
            row |= {"layer": layer, "positions": "locus" if steered else "", "strength": strength, "text": "x"}
            rows.append(row | {"shows": i < 10 * rate, "coherent": True, "drift": drift})
    found = Comparison("emotional_support", pd.DataFrame(rows))
    page = write_sweep(tmp_path / "r.html", found, "tiny <b>", ["40 replies"]).read_text(encoding="utf-8")
    assert "layer &lt;3&gt;, locus, strength 1" in page, "the best within the drift limit"
    assert '<th scope="row">blocks.5.hook_resid_post, locus, 1</th>' in page, "a hook point's name can be copied"
    assert "<h1>Sweep: emotional support in tiny &lt;b&gt;</h1>" in page
