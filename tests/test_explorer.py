"""The widget in a real JupyterLab: with the mouse, by keyboard alone, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from synthetic import attribution

import star_tl as star
from star_tl.errors import StarError
from star_tl.explorer import Explorer, safe_until, segments, token_pieces, view
from star_tl.sampling import Reply

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "03_compare_loci.ipynb"
ARTIFACTS = Path(os.environ.get("STAR_TL_ARTIFACTS", ROOT / "artifacts"))
WAIT = 60_000  # ms; the machine may be busy


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab of its own: its address, and its folder with a copy of the notebook."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(NOTEBOOK, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ServerApp.port": port,
        "ServerApp.root_dir": folder,
        "IdentityProvider.token": "",
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "LabApp.expose_app_in_browser": True,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    home = {f"JUPYTER_{kind}_DIR": str(tmp_path_factory.mktemp(kind.lower())) for kind in ("CONFIG", "RUNTIME")}
    (Path(home["JUPYTER_CONFIG_DIR"]) / "labconfig").mkdir()
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (Path(home["JUPYTER_CONFIG_DIR"]) / "labconfig" / "page_config.json").write_text(json.dumps(quiet))
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments], stdout=log, stderr=log, env=os.environ | home, cwd=folder
        )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=1)
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                pytest.fail(f"JupyterLab did not start: {(folder / 'lab.log').read_text()[-2000:]}")
            yield address, folder
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(lab: tuple[str, Path], browser) -> Iterator:
    """The notebook, opened and run as far as the widget."""
    opened = browser.new_page(viewport={"width": 1440, "height": 1500})
    opened.set_default_timeout(WAIT)
    opened.goto(f"{lab[0]}/lab/workspaces/test-{time.time_ns()}/tree/{NOTEBOOK.name}?reset")
    opened.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext")
    opened.evaluate(
        """async () => {
            const app = window.jupyterapp, panel = app.shell.currentWidget;
            await panel.sessionContext.ready;
            await panel.context.ready;
            await app.commands.execute("application:toggle-left-area").catch(() => {});
            await app.commands.execute("notebook:run-all-cells");
        }"""
    )
    opened.locator(".star-explorer .cell").first.wait_for()
    yield opened
    opened.close()


def cell(page, layer: int, column: str):
    return page.locator(f".star-explorer [role=gridcell][aria-label^='layer {layer}, {column}']")


def finished(page) -> None:
    page.locator(".star-explorer [role=status]", has_text="Done.").wait_for()
    assert page.locator(".star-explorer .problem").text_content() == ""


def photograph(page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.locator(".star-explorer").screenshot(path=ARTIFACTS / f"{name}.png")


def replies(page) -> list[str]:
    return page.locator(".star-explorer article .text").all_text_contents()


def test_click_slide_compare_and_keep(page, lab):
    widget = page.locator(".star-explorer")
    widget.scroll_into_view_if_needed()
    begun = time.monotonic()
    cell(page, 6, "resid_post").click()
    page.locator("article:nth-child(2) .text:not(:has-text('…'))").wait_for()
    seconds = time.monotonic() - begun
    print(f"from click to the first steered token: {seconds:.2f} s")
    assert seconds < 3 if os.environ.get("STAR_TL_QUIET") else seconds < 20, "3 s on a quiet machine"
    finished(page)
    assert len(replies(page)) == 2
    at_first = replies(page)[1]
    assert page.locator("svg polyline").count() == 2
    assert re.search(r"up to \d", widget.locator(".strength .soft").text_content())

    slider = widget.get_by_role("slider")
    slider.fill(str(float(slider.get_attribute("max")) * 0.5))
    finished(page)
    assert "1.50" in widget.locator("output").text_content()
    assert replies(page)[1] != at_first, "a stronger vector writes another reply"

    cell(page, 3, "resid_post").click()
    page.locator("article").nth(2).wait_for()
    finished(page)
    assert len(replies(page)) == 3
    assert page.locator("svg polyline").count() == 4
    assert widget.locator("tbody tr").count() == 2

    widget.locator("article").nth(1).get_by_role("button", name="Keep this vector").click()
    code = widget.locator(".kept pre").text_content()
    saved = lab[1] / "emotional_support_layer6_resid_post.safetensors"
    model = star.load_model("demo")
    assert star.SteeringVector.load(saved, model).locus.layer == 6
    assert len(code.splitlines()) == 3
    photograph(page, "explorer")

    names = {"star": star, "model": model}
    *lines, last = code.replace(saved.name, str(saved)).splitlines()
    exec("\n".join(lines), names)
    assert eval(last, names) == [replies(page)[1]], "the three lines write what the widget wrote"


def test_every_control_is_labelled_and_reached_by_keyboard(page):
    widget, press = page.locator(".star-explorer"), page.keyboard.press
    nameless = widget.evaluate(
        """root => [...root.querySelectorAll("button, select, input, textarea, [role=gridcell][aria-label], [role=grid]")]
            .filter(e => !(e.ariaLabel || e.textContent.trim() && e.tagName === "BUTTON" || e.labels?.length))
            .map(e => e.outerHTML.slice(0, 90))"""
    )
    assert nameless == []
    for chip in range(widget.locator(".chips li:not(.add)").count(), 0, -1):
        widget.locator(".chips li button").first.focus()
        press("Enter")
        page.wait_for_function(f"document.querySelectorAll('.chips li:not(.add)').length === {chip - 1}")

    widget.get_by_role("tab", name="Layer × component").focus()
    press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "Layer × head"
    for _ in range(4):  # estimator, form, pairs, then the map
        press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "gridcell"
    press("Home")
    press("ArrowRight")
    press("ArrowDown")
    assert page.evaluate("document.activeElement.ariaLabel").startswith("layer 5, head 1, attn.hook_z".split(", attn")[0])
    press("Enter")
    widget.locator(".chips", has_text="Layer 5 · head 1").wait_for()
    finished(page)
    assert page.evaluate("document.activeElement.ariaSelected") == "true", "the focus stays where it was"

    for _ in range(20):
        press("Tab")
        if page.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
    press("Control+a")
    page.keyboard.type("I lost <b>my</b> job & my flat.")
    press("Tab")
    press("ArrowRight")
    finished(page)
    assert widget.locator("output").text_content().startswith("1.55")
    for _ in range(3):
        press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Generate"
    press("Enter")
    press("Tab")
    finished(page)
    assert len(replies(page)) == 2
    press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Keep this vector"
    press("Enter")
    widget.locator(".kept", has_text="layer5_attn_z_head1").wait_for()
    assert "<b>my</b>" in widget.locator(".kept pre").text_content()
    assert widget.locator(".kept b").count() == 0
    photograph(page, "explorer-keyboard")


def test_the_token_map_shows_a_pair_and_the_dark_theme_is_followed(page):
    widget = page.locator(".star-explorer")
    widget.get_by_role("tab", name="Layer × token").click()
    assert widget.locator(".cell[data-row='0']").count() == 24
    widget.get_by_label("Pairs").select_option(index=1)
    widget.locator(".span", has_text="positive reply").wait_for()
    assert widget.locator(".column", has_text="begin_of_text").count() == 1
    last = widget.locator(".cell[data-row='6']").last
    assert last.get_attribute("aria-disabled") == "true", "a reply's token is no locus"
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.locator("[data-jp-theme-light='false']").wait_for()
    widget.get_by_label("Pairs").select_option(index=0)
    widget.get_by_label("Form").select_option("steering")
    page.wait_for_function("document.querySelectorAll(\".cell[data-row='0']\").length === 24")
    assert widget.get_by_label("Pairs").is_disabled()
    photograph(page, "explorer-dark")
