"""Architectures beside Llama: equal to HuggingFace's forward, and good for the whole road."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, write_random
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import star_tl as star
from star_tl.attribution import POINTS
from star_tl.data.chat import render
from star_tl.errors import StarError
from star_tl.locus import hook_name
from star_tl.models.hooked import ARCHITECTURES
from star_tl.models.layout import is_copy_free


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """A random model of a family in a folder whose name TransformerLens would take for another's."""
    return lambda family, **more: write_random(family, tmp_path_factory.mktemp("gemma-3-llama"), tokenizer, **more)


@torch.no_grad()
def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return model(tokens).logits


def greedy(folder: Path, ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    """HuggingFace's likeliest continuation, without its cache."""
    for _ in range(count):
        ids = (*ids, int(logits(folder, torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(ids) - count :]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_huggingface_and_the_whole_road_is_walked(write: Callable[..., Path], family: str) -> None:
    folder = write(family)
    model = star.load_model(folder, device="cpu")
    assert model.cfg.original_architecture in ARCHITECTURES
    assert model.cfg.n_ctx == 512
    assert is_copy_free(model)
    assert not any(p.requires_grad for p in model.parameters())
    tokens = torch.randint(5, 600, (2, 60), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens), logits(folder, tokens), atol=1e-4, rtol=0)

    pairs = star.load_pairs("politeness")
    pairs = type(pairs)(pairs.trait, pairs.extraction.pairs[:2])
    points = [p for p in POINTS if hook_name(p, 0) in model.hook_dict]  # Pythia's parallel blocks have no resid_mid
    attr = star.attribute(model, pairs, progress=False)
    if "resid_mid" not in points:
        with pytest.raises(StarError, match="no resid_mid"):
            star.attribute(model, pairs, hook_points=["resid_mid"])
    assert attr.component("mlp_out").isfinite().all()
    vector = star.extract_vector(model, pairs, star.Locus("blocks.1.hook_resid_post", (-1,)))
    prompts = ["Could you help me?", "No."]
    plain, steered = (
        star.generate(model, prompts, hooks, max_new_tokens=8, temperature=0, progress=False)
        for hooks in ((), vector.hooks(strength=40.0, positions="all"))
    )
    assert [r.tokens for r in plain] == [
        greedy(folder, render(model.tokenizer, p).ids, len(r.tokens)) for p, r in zip(prompts, plain, strict=True)
    ]
    assert plain != steered


def test_bfloat16_and_the_first_layers_are_loaded(write: Callable[..., Path]) -> None:
    model = star.load_model(write("qwen-2.5"), dtype="bfloat16", device="cpu", first_n_layers=2)
    assert model.cfg.n_layers == len(model.blocks) == 2
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_transformer_lens_would_leave_out_is_refused(write: Callable[..., Path]) -> None:
    """YaRN for Qwen: TransformerLens's converter ignores it without a word."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.5,
    }
    folder = write("qwen-2.5", rope_parameters=rope)
    with pytest.raises(StarError, match=r"Qwen2ForCausalLM does not compute what it does .*: use backend='bridge', or"):
        star.load_model(folder, device="cpu")
    tokens = torch.randint(5, 600, (2, 60), generator=torch.Generator().manual_seed(0))
    bridge = star.load_model(folder, device="cpu", backend="bridge")
    torch.testing.assert_close(bridge(tokens), logits(folder, tokens), atol=1e-4, rtol=0)


def test_an_architecture_that_cannot_be_held_names_the_nearest(write: Callable[..., Path]) -> None:
    folder = write("pythia")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPTNeoYForCausalLM"]}))
    with pytest.raises(StarError, match=r"GPTNeoYForCausalLM .* Did you mean 'GPTNeoXForCausalLM'"):
        star.load_model(folder, device="cpu")


def test_damaged_and_incomplete_weights_are_refused(write: Callable[..., Path]) -> None:
    folder = write("gpt2")
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StarError, match=r"lacks transformer\.h\.1\.mlp\.c_fc\.weight: download or save"):
        star.load_model(folder, device="cpu")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(StarError, match="cannot be read"):
        star.load_model(folder, device="cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(StarError, match=r"cannot be read .* as safetensors"):
        star.load_model(folder, device="cpu")
