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
WAIT = 120_000  # ms; the machine may be busy


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
        "LabApp.news_url": "",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    home = {f"JUPYTER_{kind}_DIR": str(tmp_path_factory.mktemp(kind.lower())) for kind in ("CONFIG", "RUNTIME")}
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
    opened = browser.new_page(viewport={"width": 1440, "height": 1000})
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

    slider = widget.locator("input[type=range]")
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
    ARTIFACTS.mkdir(exist_ok=True)
    widget.screenshot(path=ARTIFACTS / "explorer.png")

    names = {"star": star, "model": model}
    *lines, last = code.replace(saved.name, str(saved)).splitlines()
    exec("\n".join(lines), names)
    assert eval(last, names) == [replies(page)[1]], "the three lines write what the widget wrote"
