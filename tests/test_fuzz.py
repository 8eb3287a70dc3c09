"""Damaged and odd input through the command line: exit code 0 or 2, one line, nothing half written.

Some cases are always the same; the others are new every day, seeded by the date, which is printed.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

import star_tl as star
from star_tl.cli import app
from star_tl.vectors import extract_vector

TODAY = int(os.environ.get("STAR_TL_FUZZ_SEED") or datetime.date.today().strftime("%Y%m%d"))
ALWAYS, NEW = 200, 300

TRAIT = {"trait": "calm", "positive_instruction": "Be calm.", "negative_instruction": "Be loud.", "markers": ["calm"]}
PAIR = {"id": "a", "context": "I am late.", "positive": "No hurry.", "negative": "Hurry up!"}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "../../../../esc", "a[/b]c", "\ud83d", "x" * 5000, "\x00", "<script>", "{{ x }}"]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.none(), max_size=2),
)
DEEP = st.sampled_from(["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ufeff", "null", "NaN"])


def edited(record: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The record with some of its values replaced or left out."""
    changes = st.dictionaries(st.sampled_from(sorted(record)), ODD, max_size=2)
    dropped = st.lists(st.sampled_from(sorted(record)), max_size=1)
    return st.tuples(changes, dropped).map(lambda c: {k: v for k, v in (record | c[0]).items() if k not in c[1]})


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The bytes cut off, or with some of them replaced."""
    cut = st.integers(0, len(content) - 1).map(lambda n: content[:n])
    put = st.tuples(st.integers(0, len(content) - 1), st.binary(min_size=1, max_size=8))
    return cut | put.map(lambda p: content[: p[0]] + p[1] + content[p[0] + len(p[1]) :])


def lines(*records: Any) -> bytes:
    return "\n".join(json.dumps(r) for r in records).encode(errors="surrogatepass")


PROMPTS = st.one_of(
    st.binary(max_size=60),
    DEEP.map(str.encode),
    edited({"prompt": "I am late.", "id": "a"}).map(lines),
    edited({"messages": [{"role": "user", "content": "I am late."}]}).map(lines),
    ODD.map(lambda v: lines({"messages": [{"role": v, "content": "a"}]})),
    ODD.map(lambda v: lines({"messages": [{"role": "user", "content": v}]})),
)
PAIRS = st.one_of(
    DEEP.map(lambda text: lines(TRAIT) + b"\n" + text.encode()),
    edited(TRAIT).map(lambda header: lines(header, PAIR)),
    edited(PAIR | {"split": "extraction", "metric": "logprob"}).map(lambda pair: lines(TRAIT, pair)),
    damaged(lines(TRAIT, PAIR)),
)
META = st.sampled_from(
    ["hook_point", "positions", "head", "trait", "residual_norm", "norm", "n_pairs", "model", "fingerprint", "format"]
)
VALUE = st.one_of(
    st.text(max_size=10),
    st.sampled_from(["[" * 100_000, "nan", "0", "[-1.5]", "[true]", "null", "9" * 5000, "blocks.99.hook_resid_post"]),
)
TENSOR = st.tuples(
    st.sampled_from([torch.float32, torch.float64, torch.bool, torch.int8, torch.complex64, torch.bfloat16]),
    st.lists(st.integers(0, 3), max_size=3),
).map(lambda t: torch.ones(t[1], dtype=t[0]))
CONFIG = st.dictionaries(
    st.sampled_from(
        [
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_parameters",
            "architectures",
            "head_dim",
            "max_position_embeddings",
        ]
    ),
    ODD,
    min_size=1,
    max_size=2,
)
MAP = st.dictionaries(
    st.sampled_from(["trait", "method", "metric", "model", "fingerprint", "prompt_end", "tokens", "spans", "pair_ids"]),
    VALUE,
    min_size=1,
    max_size=2,
)
NUMBER = st.one_of(st.integers(-(10**40), 10**40).map(str), st.floats().map(str), st.text(max_size=8))
OPTIONS_OF_GENERATE = st.one_of(
    st.tuples(st.sampled_from(["--strength", "--temperature", "--top-p", "--seed", "--first-n-layers"]), NUMBER),
    st.tuples(st.just("--max-new-tokens"), NUMBER.filter(lambda text: not text.strip().isdigit() or len(text) > 5)),
    st.tuples(
        st.sampled_from(["--positions", "--device", "--dtype", "--backend", "--mode", "--limit"]),
        st.text(max_size=12) | st.sampled_from(["first 0", "every -1", "decay 1e9", "-1,-1", "0", "9" * 50, "cuda:99"]),
    ),
)
CASES = st.one_of(
    st.tuples(st.just("map"), MAP),
    st.tuples(st.just("option"), OPTIONS_OF_GENERATE),
    st.tuples(st.just("prompts"), PROMPTS),
    st.tuples(st.just("pairs"), PAIRS),
    st.tuples(st.just("vector"), st.dictionaries(META, VALUE, min_size=1, max_size=2)),
    st.tuples(st.just("tensor"), TENSOR),
    st.tuples(st.just("bytes"), st.integers(0, 2000).flatmap(lambda n: st.binary(max_size=8).map(lambda b: (n, b)))),
    st.tuples(st.just("config"), CONFIG),
    st.tuples(st.just("name"), st.text(max_size=20) | st.sampled_from(["x" * 5000, "a/../../b", "..", "/dev/zero"])),
)


@pytest.fixture(scope="module")
def ask(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Any], None]]:
    from safetensors import safe_open
    from safetensors.torch import save_file

    home = tmp_path_factory.mktemp("fuzz")
    (home / "pairs.jsonl").write_bytes(lines(TRAIT, PAIR))
    vector = extract_vector(demo, star.load_pairs(home / "pairs.jsonl"), star.Locus("blocks.3.hook_resid_post"))
    vector.save(home / "v.safetensors")
    attr = star.attribute(demo, star.load_pairs(home / "pairs.jsonl"), hook_points=["resid_post"], progress=False)
    attr.save(home / "map.safetensors")
    with safe_open(str(home / "map.safetensors"), framework="pt") as file:
        map_meta, names = file.metadata(), file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    whole = (home / "v.safetensors").read_bytes()
    with safe_open(str(home / "v.safetensors"), framework="pt") as file:
        meta = file.metadata()
    model = Path(shutil.copytree(Path(star.__file__).parent / "models" / "demo", home / "model"))
    config = json.loads((model / "config.json").read_text())
    patch = pytest.MonkeyPatch()
    load = star.load_model
    patch.setattr("star_tl.models.load_model", lambda name, *rest: demo if name == "demo" else load(name, *rest))
    program = get_command(app)
    patch.setattr("typer.testing._get_command", lambda app: program)  # which takes as long as a case, every time
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    short = ["--max-new-tokens", "1"]

    def one(kind: str, value: Any) -> None:
        given, made = home / "given", home / "out.safetensors"
        if kind == "prompts":
            given.write_bytes(value)
            command = ["generate", "--prompts", str(given), "--limit", "1", *short]
        elif kind == "pairs":
            given.write_bytes(value)
            out = ["--hook-point", "blocks.0.hook_resid_post", "--out", str(made)]
            command = ["extract", "--trait", f"{given}", *out]
        elif kind in ("vector", "tensor", "bytes"):
            if kind == "bytes":
                at = value[0] % len(whole)
                given.write_bytes(whole[:at] + value[1] + whole[at + len(value[1]) :])
            else:
                changed = meta | value if kind == "vector" else meta
                save_file({"vector": vector.vector if kind == "vector" else value}, str(given), metadata=changed)
            command = ["generate", "--vector", str(given), "--prompt", "I am late.", *short]
        elif kind == "map":
            save_file(tensors, str(given), metadata=map_meta | value)
            command = ["extract", "--trait", str(home / "pairs.jsonl"), "--attribution", str(given), "--out", str(made)]
        elif kind == "option":
            command = ["generate", "--vector", str(home / "v.safetensors"), "--prompt", "hi", *short]
            command.append(f"{value[0]}={value[1]}")
        elif kind == "config":
            (model / "config.json").write_bytes(lines(config | value))
            command = ["generate", "--model", str(model), "--prompt", "hi", *short]
        else:
            command = ["generate", "--prompt", "hi", f"--model={value}", *short]
        result = CliRunner().invoke(app, command)
        assert result.exit_code in (0, 2), (command, result.output, result.exception)
        if result.exit_code:
            bars, _, said = result.stderr.rpartition("star-tl: ")  # other libraries' progress may stand before
            assert said, (command, result.stderr)
            assert len(said.strip().splitlines()) == 1, (command, result.stderr)
            assert "Traceback" not in bars
            assert len(said) < 1500
            assert not made.exists()
        made.unlink(missing_ok=True)
        left = {p.name for p in home.iterdir()} - {"given", "pairs.jsonl", "v.safetensors", "map.safetensors", "model"}
        assert not left, (command, left)

    yield one
    patch.undo()


OPTIONS: dict[str, Any] = {
    "database": None,
    "deadline": None,
    "phases": (Phase.generate,),
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=ALWAYS, derandomize=True, **OPTIONS)
@given(CASES)
def test_the_same_odd_input_every_day(ask: Callable[[str, Any], None], case: tuple[str, Any]) -> None:
    ask(*case)


@seed(TODAY)
@settings(max_examples=NEW, **OPTIONS)
@given(CASES)
def new_cases(ask: Callable[[str, Any], None], case: tuple[str, Any]) -> None:
    ask(*case)


def test_new_odd_input_every_day(ask: Callable[[str, Any], None], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nfuzz seed {TODAY} (STAR_TL_FUZZ_SEED={TODAY} repeats it)")
    new_cases(ask)
