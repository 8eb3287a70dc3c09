"""From notebook to production: what the README says runs, and each way gives the same reply."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import star_tl as star
from star_tl.cli import app
from star_tl.locus import Locus
from star_tl.models.lens import HookedTransformer

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
NOTEBOOK, CLIENT = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
EXTRACT, SERVER, *EXPORTS = re.findall(
    r"^star-tl .*?(?=  #|$)", README.partition("## From notebook to production")[2], re.M
)


def command(line: str) -> list[str]:
    return [sys.executable, "-c", "from star_tl.cli import app; app()", *line.split()[1:]]


def test_a_vector_goes_from_the_command_line_to_a_server_and_writes_what_the_notebook_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, EXTRACT.split()[1:])
    assert done.exit_code == 0, done.output
    with subprocess.Popen(command(f"{SERVER} --port 0"), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address
            exec("from openai import OpenAI\n" + CLIENT.replace("http://127.0.0.1:8000", address[0]), {})
        finally:
            server.terminate()
    *_, turned_up = (line for line in NOTEBOOK.splitlines() if line.startswith("# "))
    assert capsys.readouterr().out.strip() == turned_up.removeprefix("# ")


@pytest.mark.parametrize("line", EXPORTS[:1])
def test_a_vector_goes_to_other_programs(
    line: str, demo: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vector = star.extract_vector(demo, star.load_pairs("emotional_support"), Locus("blocks.5.hook_resid_post"))
    vector.save(tmp_path / "support.safetensors")
    done = CliRunner().invoke(app, line.split()[1:])
    assert done.exit_code == 0, done.output
    assert (tmp_path / line.split()[-1]).is_file()
