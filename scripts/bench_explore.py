"""How long the widget takes in a real JupyterLab, driven by a headless Chromium; its pictures; its saved notebook.

    python scripts/bench_explore.py [--model smollm2] [--dtype bfloat16] [--trait emotional_support] [--pictures FOLDER]
        [--map FILE] [--json FILE]

Needs `pip install playwright` and Chromium (`apt install chromium`), as the browser tests do. Seconds:

    shown          from running the cells to the map on the page, attribution (or --map, a saved one) included
    first_token    of the first minute: from the map to the first steered token
    first_minute   until the first prompt's replies stand there, chosen and measured
    doses          the dose–response of the first place, unsteered replies included
    click_token    from a click on another cell to its first steered token
    click_doses    the dose–response of that place
    advised        from a click on the advised strength to the replies
    ladder_token   from a click on Ladder to its first steered token
    stopped        from a click on Stop, in the middle of a dose–response, to the word "Stopped."
    snapshot       until the page and the table are written
    saved          the notebook is saved and opened without a kernel: until the map and the replies are read there
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

WINDOW = {"width": 1500, "height": 950}
NARROW = 480  # pixels, as on a phone
NAME = "explore.ipynb"
CELLS = (
    """import star_tl as star

model = star.load_model({model!r}, dtype={dtype!r}, first_n_layers={layers})
pairs = star.load_pairs({trait!r})""",
    "{attribute}",
    "star.explore(model, pairs, attr)",
)


def notebook(folder: Path, model: str, dtype: str | None, trait: str, saved_map: str | None, **more: Any) -> Path:
    """A notebook that opens the widget, as a user would write it."""
    made = f"star.AttributionMap.load({saved_map!r})" if saved_map else "star.attribute(model, pairs)"
    names = {"model": model, "dtype": dtype, "trait": trait, "attribute": f"attr = {made}", "layers": None, **more}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # without one Jupyter asks for it
    whole = nbformat.v4.new_notebook(
        metadata={"kernelspec": kernel}, cells=[nbformat.v4.new_code_cell(cell.format(**names)) for cell in CELLS]
    )
    nbformat.write(whole, folder / NAME)
    return folder / NAME


@contextmanager
def jupyter_server(folder: Path) -> Iterator[str]:
    """A Jupyter server of its own over a folder; its address."""
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
        "JupyterNotebookApp.expose_app_in_browser": True,
    }
    with tempfile.TemporaryDirectory() as home, (folder / "server.log").open("w") as log:
        homes = {f"JUPYTER_{kind}_DIR": f"{home}/{kind.lower()}" for kind in ("CONFIG", "RUNTIME")}
        config = Path(homes["JUPYTER_CONFIG_DIR"]) / "labconfig"
        config.mkdir(parents=True)
        quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
        (config / "page_config.json").write_text(json.dumps(quiet))
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())],
            stdout=log,
            stderr=log,
            env=os.environ | homes,
            cwd=folder,
        )
        try:
            for _ in range(480):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1)
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                raise TimeoutError(f"Jupyter did not start: {(folder / 'server.log').read_text()[-2000:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser. Raises FileNotFoundError where Chromium is not installed, ImportError without playwright."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        raise FileNotFoundError("chromium is not installed: apt install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@contextmanager
def run_notebook(browser: Any, address: str, wait: float = 60_000) -> Iterator[Any]:
    """The notebook, opened at ``address`` in a window as of a laptop, and run."""
    page = browser.new_page(viewport=WINDOW, device_scale_factor=1.5)
    page.set_default_timeout(wait)
    page.goto(address)
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext")
    page.evaluate(
        """async () => {
            const app = window.jupyterapp, panel = app.shell.currentWidget;
            await panel.sessionContext.ready;
            await panel.context.ready;
            await app.commands.execute("application:toggle-left-area").catch(() => {});
            await app.commands.execute("statusbar:toggle").catch(() => {});
            await app.commands.execute("notebook:run-all-cells");
            const cells = panel.content.widgets.map(cell => cell.model.sharedModel.getSource());
            panel.content.activeCellIndex = cells.findIndex(source => source.includes("star.explore("));
            await panel.content.scrollToItem(panel.content.activeCellIndex);  // a cell out of sight has no page
        }"""
    )
    page.locator(".star-explorer .cell").first.wait_for()
    yield page
    page.close()


@contextmanager
def saved_and_opened(page: Any, browser: Any, address: str, name: str, wait: float = 60_000) -> Iterator[Any]:
    """The notebook as it was left, saved, its kernel ended, and opened in a new page without one."""
    page.evaluate(
        """async () => {
            const app = window.jupyterapp, panel = app.shell.currentWidget;
            await panel.context.save();
            await panel.sessionContext.shutdown();
        }"""
    )
    fresh = browser.new_page(viewport=WINDOW, device_scale_factor=1.5)
    fresh.set_default_timeout(wait)
    fresh.goto(f"{address}/lab/workspaces/saved-{time.time_ns()}?reset")
    fresh.wait_for_function("window.jupyterapp?.commands?.hasCommand('docmanager:open')")
    fresh.evaluate(
        """async path => {
            const app = window.jupyterapp;
            await app.restored;
            const preference = { shouldStart: false, canStart: false, autoStartDefault: false };
            await app.commands.execute("docmanager:open", { path, factory: "Notebook", kernelPreference: preference });
            const panel = app.shell.currentWidget;
            await panel.context.ready;
            const cells = panel.content.widgets.map(cell => cell.model.sharedModel.getSource());
            panel.content.activeCellIndex = cells.findIndex(source => source.includes("star.explore("));
            await panel.content.scrollToItem(panel.content.activeCellIndex);
        }""",
        name,
    )
    yield fresh
    fresh.close()


def photograph(page: Any, path: Path, width: int = WINDOW["width"]) -> None:
    """The cell that made the widget, and all of it, in a window that is as tall as it takes."""
    page.mouse.move(0, 0)
    page.set_viewport_size({"width": width, "height": 1900})
    widget = page.locator(".star-explorer")
    height = widget.evaluate(
        """widget => widget.closest(".jp-Cell").offsetHeight
            + innerHeight - widget.closest(".jp-WindowedPanel-outer").offsetHeight"""
    )
    page.set_viewport_size({"width": width, "height": math.ceil(height) + 8})
    widget.evaluate("widget => widget.closest('.jp-Cell').scrollIntoView()")
    page.screenshot(path=path)
    page.set_viewport_size(WINDOW)


def drive(page: Any, browser: Any, address: str, folder: Path, pictures: Path | None) -> dict[str, float]:
    """Go the whole way, from the first minute to the saved notebook; seconds of each step."""
    took: dict[str, float] = {}
    status, widget = page.locator(".star-explorer [role=status]"), page.locator(".star-explorer")

    def timed(name: str, begun: float) -> float:
        took[name] = round(time.monotonic() - begun, 2)
        print(f"{name:13} {took[name]:7.2f} s", flush=True)
        return time.monotonic()

    def token(card: int) -> None:
        page.wait_for_function(
            "k => (document.querySelectorAll('.star-explorer article')[k]?.querySelector('.text')?.textContent"
            " ?? '…') !== '…'",
            arg=card,
        )

    def says(words: str) -> None:
        page.wait_for_function(
            "words => document.querySelector('.star-explorer [role=status]').textContent.includes(words)", arg=words
        )

    def done() -> None:
        says("Done.")
        problem = page.locator(".star-explorer .problem").text_content()
        if problem:
            raise RuntimeError(problem)

    def picture(name: str) -> None:
        if pictures is not None:
            photograph(page, pictures / f"{name}.png")

    def other_cell(layers: int) -> Any:
        """A cell in the middle that is not selected."""
        for layer in sorted(range(layers), key=lambda k: abs(k - layers // 2)):
            cell = widget.locator(f"[aria-label^='layer {layer}, resid_post']")
            if cell.get_attribute("aria-selected") == "false":
                return cell
        raise RuntimeError("All layers are selected.")

    begun = time.monotonic()
    token(1)
    timed("first_token", begun)
    says("Dose–response")
    measuring = timed("first_minute", begun)
    shown = [widget.locator("article").nth(k).locator("mark").count() for k in (0, 1)]
    print(f"the first prompt: {shown[0]} markers unsteered, {shown[1]} steered", flush=True)
    picture("first")
    done()
    timed("doses", measuring)
    picture("explorer")
    layers = widget.locator(".cell[data-col='0']").count()
    cell = other_cell(layers)
    begun = time.monotonic()
    cell.click()
    token(2)
    timed("click_token", begun)
    says("Dose–response")
    measuring = time.monotonic()
    done()
    timed("click_doses", measuring)
    picture("two")
    begun = time.monotonic()
    widget.get_by_role("button", name="Advised").last.click()
    page.wait_for_function("document.querySelector('.star-explorer [role=status]').textContent !== 'Done.'")
    done()
    timed("advised", begun)
    begun = time.monotonic()
    widget.get_by_role("button", name="Ladder").last.click()
    page.locator("article").nth(5).wait_for()
    token(5)
    timed("ladder_token", begun)
    done()
    picture("ladder")
    other_cell(layers).click()
    says("Dose–response")
    begun = time.monotonic()
    widget.get_by_role("button", name="Stop").click()
    says("Stopped.")
    timed("stopped", begun)
    begun = time.monotonic()
    widget.get_by_role("button", name="Save snapshot").click()
    widget.locator(".kept", has_text=re.compile(r"_snapshot(-\d+)?\.html")).wait_for()
    timed("snapshot", begun)
    if pictures is not None:
        for tab in ("head", "token"):
            widget.get_by_role("tab", name=f"Layer × {tab}").click()
            picture(f"{tab}s")
        widget.get_by_role("tab", name="Layer × component").click()
        photograph(page, pictures / "narrow.png", NARROW)
        page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
        page.locator("[data-jp-theme-light='false']").wait_for(state="attached")
        picture("dark")
    written = page.locator(".star-explorer article .text").all_text_contents()
    begun = time.monotonic()
    with saved_and_opened(page, browser, address, NAME) as fresh:
        left = fresh.locator(".star-explorer-still")
        left.wait_for()
        there = " ".join(left.inner_text().split())
        missing = [text for text in written if " ".join(text.split()) not in there]
        if missing or left.locator("tr").count() <= layers:
            raise RuntimeError(f"The saved notebook lacks its map or {missing}.")
        timed("saved", begun)
        if pictures is not None:
            fresh.screenshot(path=pictures / "saved.png")
    print(f"status: {status.text_content()}; files: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", help="bfloat16 is twice as fast on a CPU that has its instructions")
    parser.add_argument("--trait", default="emotional_support")
    parser.add_argument("--map", help="an attribution map that was saved, to leave attribution out")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of every step")
    parser.add_argument("--json", type=Path, help="where to write the seconds")
    options = parser.parse_args()
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
    wait = 1000.0 * 3600
    with tempfile.TemporaryDirectory() as made, chromium() as browser:
        folder = Path(made)
        saved_map = str(Path(options.map).resolve()) if options.map else None
        notebook(folder, options.model, options.dtype, options.trait, saved_map)
        with jupyter_server(folder) as address:
            begun = time.monotonic()
            lab = f"{address}/lab/workspaces/bench-{time.time_ns()}/tree/{NAME}?reset"
            with run_notebook(browser, lab, wait) as page:
                took = {"shown": round(time.monotonic() - begun, 2)}
                print(f"{'shown':13} {took['shown']:7.2f} s", flush=True)
                took |= drive(page, browser, address, folder, options.pictures)
    if options.json is not None:
        options.json.write_text(json.dumps({"model": options.model, "dtype": options.dtype, **took}, indent=1) + "\n")


if __name__ == "__main__":
    main()
