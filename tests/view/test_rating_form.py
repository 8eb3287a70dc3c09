"""The form is filled in by a real browser, without a network, and what it saves is read back."""

from __future__ import annotations

import html
import shutil

import pandas as pd
import pytest
from synthetic import SCRIPT, evaluated

from star_tl.errors import StarError
from star_tl.evaluation.conditions import CONDITIONS
from star_tl.evaluation.evaluated import NOTES
from star_tl.evaluation.human import blinded, human_tables, read_ratings
from star_tl.view.evaluation_report import write_evaluation_report
from star_tl.view.plots import plot_matrix
from star_tl.view.rating_form import write_form


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


def test_a_filled_in_form_is_read_back(browser, tmp_path) -> None:
    result = evaluated(prompts=8)
    items = blinded(result)
    written = write_form(result, tmp_path / "form")
    assert [p.name for p in written] == ["form.html", "form.csv", "key.csv"]
    context = browser.new_context(accept_downloads=True)
    context.set_offline(True)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written[0].as_uri())
    assert page.locator("fieldset").count() == len(items)
    assert page.title() == "Two replies: politeness"
    shown = page.locator("main").inner_text()
    assert SCRIPT in shown
    for name in ("located", "unsteered", "priming", "random"):
        assert name not in page.content().lower(), "a blinded form names no condition"
    for row in items.itertuples():
        box = page.locator(f"#item-{row.item}")
        assert box.locator(".text").all_inner_texts() == [row.a, row.b]
        mine = "A" if row.arm_a == "located" else "B"
        box.locator(f"input[name='trait-{row.item}'][value='{mine}']").check()
        if row.item > 1:
            box.locator(f"input[name='better-{row.item}'][value='same']").check()
    for width in (390, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        for label in page.locator("#item-1 label").all():
            button = label.locator("input").bounding_box()
            assert label.bounding_box()["height"] < 2 * button["height"] + 12, "a button stands on its letter's line"
    assert page.locator("#count").inner_text() == f"{2 * len(items) - 1} of {2 * len(items)} answered"
    page.locator("#rater").fill('Zoë "Z", 7')
    with page.expect_download() as download:
        page.locator("#save").click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "blob:"))] == []

    ratings = read_ratings([saved], items)
    assert set(ratings.rater) == {'Zoë "Z", 7'}
    assert ratings.item.tolist() == items.item.tolist()
    assert (ratings.better == "").sum() == 1
    wins = human_tables(result, [saved])["people: how often the intervention won"]
    assert (wins[wins.question == "trait"].wins == 1).all()
    assert (wins[wins.question == "better"].wins == 0.5).all()


def test_a_form_without_differences_is_refused(tmp_path) -> None:
    result = evaluated(prompts=4)
    result.samples["text"] = "always this"
    with pytest.raises(StarError, match="nothing to compare"):
        write_form(result, tmp_path / "form")
    assert list(tmp_path.iterdir()) == []


def test_the_report_opens_offline_with_its_figures_and_text_as_text(browser, tmp_path) -> None:
    path = write_evaluation_report(tmp_path / "report.html", evaluated())
    context = browser.new_context()
    context.set_offline(True)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    for name in ("effects-0", "effects-1", "frontier", "matrix-figure", "turns-figure"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.locator(f"#{name} .main-svg").first.wait_for()
    assert said == []
    assert page.get_by_text("tiny_model & co").is_visible()
    assert page.locator("#tables table").count() >= 6
    context.close()


def test_tables_are_markdown_and_latex() -> None:
    result = evaluated()
    markdown, latex = result.to_markdown(), result.to_latex()
    assert markdown.startswith("# negotiation_politeness on tiny_model\n")
    assert "| located |" in markdown
    *tables, notes = markdown.split("\n\n## ")[1:]
    assert notes.startswith("How to read this\n")
    for table in tables:
        assert len({line.count("|") for line in table.split("\n") if line.startswith("|")}) == 1
    assert r"\begin{tabular}{l" in latex
    assert r"100\%" in latex
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == len(result.tables())


def test_the_page_says_what_was_compared_and_what_its_words_mean(tmp_path) -> None:
    result = evaluated()
    page = write_evaluation_report(tmp_path / "r.html", result).read_text(encoding="utf-8")
    section = page[page.index('id="conditions"') :]
    for name in CONDITIONS:
        assert (f"<dt>{name}</dt>" in section) == (name in set(result.table.condition)), name
    for name in NOTES:
        assert f"<dt>{html.escape(name)}</dt>" in section
        assert f"**{name}**" in result.to_markdown()
    assert "nan" not in [cell.strip() for line in result.to_markdown().splitlines() for cell in line.split("|")]


def test_figures_round_as_tables_do() -> None:
    matrix = pd.DataFrame(
        {"vector": ["a", "b"] * 2, "measured": ["a", "a", "b", "b"], "markers": [0.125, -0.125, 0.5, 0]}
    )
    (cells,) = plot_matrix(matrix).data
    assert [list(row) for row in cells.text] == [["+0.12", "+0.50"], ["-0.12", "+0.00"]]
    assert cells.texttemplate == "%{text}"
