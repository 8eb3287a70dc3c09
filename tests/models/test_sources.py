"""What load_model takes besides names and folders: model objects, adapters; and what identifies and guards a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import write_random
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import star_tl as star
from star_tl.data.chat import render, stop_ids
from star_tl.models.layout import is_copy_free
from star_tl.models.lens import TransformerBridge
from star_tl.models.load import fingerprint

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
Change = Callable[[HookedTransformer], None]


def tokens() -> torch.Tensor:
    return torch.randint(5, 600, (2, 40), generator=torch.Generator().manual_seed(0))


# ---- model objects


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen-2.5"])
def test_a_model_object_is_copied_and_stays_as_it_is(tmp_path: Path, tokenizer: Any, family: str, backend: str) -> None:
    hf = AutoModelForCausalLM.from_pretrained(write_random(family, tmp_path, tokenizer)).eval()
    with torch.no_grad():
        hf.get_input_embeddings().weight[7] += 1  # as training does: no longer what the folder holds
        expected = hf(tokens()).logits
    model = star.load_model(hf, device="cpu", backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), expected, rtol=1e-3, atol=1e-3)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(hf(tokens()).logits, expected)
    assert all(parameter.requires_grad for parameter in hf.parameters())
    assert model.tokenizer.chat_template


def test_an_object_that_names_no_tokenizer_wants_one(tiny_folder: Path, tokenizer: Any) -> None:
    hf = LlamaForCausalLM(LlamaForCausalLM.from_pretrained(tiny_folder).config)
    hf.config.name_or_path = ""
    with pytest.raises(star.StarError, match="give load_model its tokenizer"):
        star.load_model(hf, device="cpu")
    model = star.load_model(hf, device="cpu", tokenizer=tokenizer)
    assert model.cfg.model_name == "LlamaForCausalLM"
    assert len(star.generate(model, ["Hi"], max_new_tokens=3, progress=False)) == 1


def test_a_hooked_transformer_of_ones_own_is_taken_as_it_is(tokenizer: Any) -> None:
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=32, d_head=8, n_heads=4, d_mlp=64, n_ctx=256, d_vocab=600, act_fn="gelu", seed=0
    )
    own = HookedTransformer(cfg)
    expected = own(tokens())
    with pytest.raises(star.StarError, match="has no tokenizer"):
        star.load_model(own)
    with pytest.raises(star.StarError, match="taken as it is"):
        star.load_model(own, dtype="bfloat16", tokenizer=tokenizer)
    model = star.load_model(own, tokenizer=tokenizer)
    assert model is own
    assert is_copy_free(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(tokens()), expected, **CLOSE)
    assert len(star.generate(model, ["Hi"], max_new_tokens=3, progress=False)) == 1


@pytest.mark.parametrize("strange", [3, None, {"a": 1}, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(strange: Any) -> None:
    with pytest.raises(star.StarError, match="is no model"):
        star.load_model(strange)


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_a_model_objects_generation_config_ends_replies(tiny_folder: Path, tokenizer: Any, backend: str) -> None:
    """As HuggingFace's generate does: against the replies that it writes."""
    hf = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = list(render(tokenizer, "Hi").ids)
    free = hf.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=20, eos_token_id=-1)[0, len(ids) :].tolist()
    hf.generation_config.eos_token_id = [3, free[5]]
    ended = hf.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=20)[0, len(ids) :].tolist()
    assert ended == free[: free.index(free[5]) + 1]
    model = star.load_model(hf, device="cpu", backend=backend, tokenizer=tokenizer)
    (reply,) = star.generate(model, ["Hi"], temperature=0, max_new_tokens=20, progress=False)
    assert list(reply.tokens) == ended[:-1]


def test_models_that_share_a_tokenizer_object_keep_their_own_ends(tiny_folder: Path, tokenizer: Any) -> None:
    ends = []
    for own in (17, 23):
        hf = AutoModelForCausalLM.from_pretrained(tiny_folder)
        hf.generation_config.eos_token_id = own
        ends.append(star.load_model(hf, device="cpu", tokenizer=tokenizer))
    first, second = (set(stop_ids(model.tokenizer)) for model in ends)
    assert first - second == {17}
    assert second - first == {23}
    assert not hasattr(tokenizer, "chat_format")


def test_an_own_bridges_generation_config_ends_replies(tiny_folder: Path) -> None:
    own = TransformerBridge.boot_transformers(str(tiny_folder), device="cpu")
    own.original_model.generation_config.eos_token_id = [3, 17]
    assert 17 in stop_ids(star.load_model(own).tokenizer)


def test_a_folder_without_a_generation_config_ends_replies_as_its_config_says(
    write_llama: Callable[..., Path], tokenizer: Any
) -> None:
    folder = write_llama(eos_token_id=17)
    (folder / "generation_config.json").unlink()
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == 17
    model = star.load_model(folder, device="cpu")
    assert set(stop_ids(model.tokenizer)) == set(stop_ids(tokenizer)) | {17}


# ---- LoRA


def write_adapter(base: Path, folder: Path, modules: dict[str, tuple[int, int]], **settings: Any) -> Path:
    folder.mkdir()
    torch.manual_seed(1)
    rank = 4
    weights = {}
    for module, (rows, columns) in modules.items():
        weights[f"base_model.model.{module}.lora_A.weight"] = 0.3 * torch.randn(rank, columns)
        weights[f"base_model.model.{module}.lora_B.weight"] = 0.3 * torch.randn(rows, rank)
    save_file(weights, folder / "adapter_model.safetensors")
    held = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": rank, "lora_alpha": 6, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(held | settings))
    return folder


def merged(base: Path, adapter: Path, scale: float, turned: bool = False) -> torch.Tensor:
    """Logits of HuggingFace's own model to whose weights scale * B A is added by hand."""
    hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, down in weights.items():
            if "lora_A" in name:
                change = scale * weights[name.replace("lora_A", "lora_B")] @ down
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                hf.get_submodule(module).weight += change.T if turned else change
        return hf(tokens()).logits


LLAMA_MODULES = {"model.layers.0.self_attn.q_proj": (32, 32), "model.layers.2.mlp.down_proj": (32, 64)}


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 1.5),
        ({"use_rslora": True}, 3.0),
        ({"alpha_pattern": {"q_proj": 8, "down_proj": 8}}, 2.0),
    ],
)
def test_an_adapter_is_merged_into_its_base(
    tiny_folder: Path, tmp_path: Path, settings: dict[str, Any], scale: float, backend: str
) -> None:
    adapter = write_adapter(tiny_folder, tmp_path / "lora", LLAMA_MODULES, **settings)
    model = star.load_model(adapter, device="cpu", backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), merged(tiny_folder, adapter, scale), **CLOSE)
    assert fingerprint(model) != fingerprint(star.load_model(tiny_folder, device="cpu"))


def test_an_adapter_of_another_architecture_is_merged(tmp_path: Path, tokenizer: Any) -> None:
    base = write_random("gpt2", tmp_path / "base", tokenizer)
    modules = {"transformer.h.1.attn.c_attn": (96, 32)}
    adapter = write_adapter(base, tmp_path / "lora", modules, fan_in_fan_out=True)
    model = star.load_model(adapter, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), merged(base, adapter, 1.5, turned=True), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("modules", "settings", "words"),
    [
        ({"model.layers.9.mlp.down_proj": (32, 64)}, {}, "which .* lacks"),
        ({"model.layers.1.mlp.down_proj": (32, 65)}, {}, "does not fit its base"),
        (LLAMA_MODULES, {"use_dora": True}, "no plain LoRA"),
        (LLAMA_MODULES, {"peft_type": "IA3"}, "no plain LoRA"),
        (LLAMA_MODULES, {"modules_to_save": ["lm_head"]}, "no plain LoRA"),
        (LLAMA_MODULES, {"lora_alpha": None}, "no lora_alpha"),
        (LLAMA_MODULES, {"base_model_name_or_path": None}, "names no base"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(
    tiny_folder: Path, tmp_path: Path, modules: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    adapter = write_adapter(tiny_folder, tmp_path / "lora", modules, **settings)
    with pytest.raises(star.StarError, match=words):
        star.load_model(adapter, device="cpu")


def test_an_adapter_without_weights_or_on_itself_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tiny_folder, tmp_path / "lora", LLAMA_MODULES)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(star.StarError, match=r"lacks adapter_model\.safetensors"):
        star.load_model(adapter, device="cpu")
    itself = write_adapter(tmp_path / "self", tmp_path / "self", LLAMA_MODULES)
    with pytest.raises(star.StarError, match="names an adapter as its base"):
        star.load_model(itself, device="cpu")


# ---- tied embeddings


def test_processing_a_tied_model_leaves_what_it_computes(write_llama: Callable[..., Path]) -> None:
    model = star.load_model(write_llama(tie_word_embeddings=True), device="cpu")
    assert model.W_E.data_ptr() == model.W_U.data_ptr(), "one matrix, held once"
    before = model(tokens()).log_softmax(-1)
    model.process_weights_(fold_ln=True)
    torch.testing.assert_close(model(tokens()).log_softmax(-1), before, **CLOSE)


def test_new_weights_for_the_unembedding_leave_the_embedding(write_llama: Callable[..., Path]) -> None:
    model = star.load_model(write_llama(tie_word_embeddings=True), device="cpu")
    embedding = model.W_E.clone()
    model.load_state_dict({"unembed.W_U": 2 * model.W_U}, strict=False)
    assert torch.equal(model.W_E, embedding)
    assert torch.equal(model.W_U, 2 * embedding.T)


# ---- fingerprints


def flip_q(model: Any) -> None:
    model.blocks[1].attn.W_Q.data.neg_()


def one_head(model: Any) -> None:
    model.blocks[2].attn.W_Q.data[3].zero_()


def one_norm(model: Any) -> None:
    model.blocks[1].ln2.w.data[5] += 0.05


def final_norm(model: Any) -> None:
    model.ln_final.w.data.mul_(1.01)


def larger(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def no_mlp(model: Any) -> None:
    model.blocks[2].mlp.W_in.data.zero_()


def new_bias(model: Any) -> None:
    model.blocks[0].mlp.b_out.data[0] = 1


@pytest.mark.parametrize("change", [flip_q, one_head, one_norm, final_norm, larger, no_mlp, new_bias])
def test_every_edit_changes_the_fingerprint(tiny_folder: Path, change: Change) -> None:
    model = star.load_model(tiny_folder, device="cpu")
    before = fingerprint(model)
    change(model)
    assert fingerprint(model) != before
    assert fingerprint(star.load_model(tiny_folder, device="cpu")) == before


def test_a_large_model_shows_every_head_and_row_block(demo: Any) -> None:
    model = star.load_model("demo", device="cpu")
    before = fingerprint(model)
    for parameter in (model.blocks[3].attn.W_Q, model.blocks[7].mlp.W_in, model.W_E):
        for rows in parameter.data.chunk(4):
            kept = rows.clone()
            rows.neg_()
            assert fingerprint(model) != before
            rows.copy_(kept)
    assert fingerprint(model) == before


# ---- what is no number


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tiny_folder: Path, tmp_path: Path, value: float, backend: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(star.StarError, match=r"hold NaN or infinity|not those of HuggingFace") as caught:
        star.load_model(folder, device="cpu", backend=backend)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -5.0}}, "rope_theta"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tiny_folder: Path, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(star.StarError, match=word):
        star.load_model(folder, device="cpu")
