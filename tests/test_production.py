"""From notebook to production: what notebooks/elsewhere.md says runs, and each way gives the same reply."""

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

NOTEBOOK = """
import star_tl as star

model = star.load_model("demo")
pairs = star.load_pairs("emotional_support")
vector = star.extract_vector(model, pairs, star.attribute(model, pairs).top_locus())
vector.save("support.safetensors")
prompt = "I failed my exam."
offline = star.sample(model, [prompt], vector.hooks(strength=1.5), seed=7, temperature=0.8, max_new_tokens=60)
"""
SERVER = "star-tl serve --model demo --vector support.safetensors --port 8000"
CLIENT = """
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
reply = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": prompt}],
    seed=7,
    temperature=0.8,
    max_tokens=60,
    extra_body={"steering": {"vector": "support", "strength": 1.5}},
)
assert reply.choices[0].message.content == offline[0]
"""
EXPORTS = """
star-tl export snippet --vector support.safetensors --strength 1.5 --out steer.py
star-tl export gguf --vector support.safetensors --out support.gguf
star-tl sweep --ray local --workers 2 --trait emotional_support
"""


def test_the_page_says_just_this() -> None:
    page = (Path(__file__).parents[1] / "notebooks" / "elsewhere.md").read_text(encoding="utf-8")
    for block in (NOTEBOOK, SERVER, CLIENT, EXPORTS):
        assert block.strip() in page


def command(line: str) -> list[str]:
    return [sys.executable, "-c", "from star_tl.cli import app; app()", *line.split()[1:]]


def test_a_vector_goes_from_a_notebook_to_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(NOTEBOOK, names)
    free = SERVER.replace("8000", "0")
    with subprocess.Popen(command(free), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address
            exec(CLIENT.replace("http://127.0.0.1:8000", address[0]), names)
        finally:
            server.terminate()


@pytest.mark.parametrize("line", EXPORTS.strip().splitlines()[:2])
def test_a_vector_goes_to_other_programs(
    line: str, demo: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vector = star.extract_vector(demo, star.load_pairs("emotional_support"), Locus("blocks.5.hook_resid_post"))
    vector.save(tmp_path / "support.safetensors")
    done = CliRunner().invoke(app, line.split()[1:])
    assert done.exit_code == 0, done.output
    assert (tmp_path / line.split()[-1]).is_file()
