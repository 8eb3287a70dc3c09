"""Every notebook runs from a clean kernel, and what is committed is small and without machine paths."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

# A part of each trait's pairs is enough to see that every cell runs; the committed outputs are of all.
FEWER = """
from dataclasses import replace
from star_tl.data import pairs as data

def load_pairs(source, trait=None, whole=data.load_pairs):
    found = whole(source, trait)
    if str(source) not in data.TRAITS:
        return found
    return replace(found, pairs=(*found.extraction.pairs[:14], *found.heldout.pairs[:6]))

data.load_pairs = load_pairs
"""
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FEWER))
    NotebookClient(notebook, timeout=400, kernel_name="python3", store_widget_state=False).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    figures = sum("application/vnd.plotly.v1+json" in o.get("data", {}) for o in outputs)
    assert figures or "widget-view" in str(outputs)
    assert not any(o.output_type == "error" for o in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook_has_outputs_is_small_and_clean(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 1_000_000
    assert "/home/" not in text
    assert "site-packages" not in text
    assert "/tmp/" not in text
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "commit the notebook with its outputs"
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for cell in code for o in cell.outputs)
    assert 'load_model("meta-llama/Llama-3.1-8B-Instruct")' in "".join(c.source for c in notebook.cells), "say so"
    assert "widgets" not in notebook.metadata, "execute with store_widget_state=False"


def test_no_notebook_claims_what_its_outputs_contradict() -> None:
    """Of the estimators the best differs from place to place, and the places are those that attribution chose."""
    told = {
        path.stem[:2]: "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
        for path in NOTEBOOKS
    }
    assert "better estimators" not in told["02"].lower()
    assert "differs from place to place" in told["02"]
    assert "last prompt token" not in told["03"]
    assert "the prompt tokens that attribution chose" in told["03"]
    assert "only a line of text" not in told["03"], "a saved notebook shows the last state"
