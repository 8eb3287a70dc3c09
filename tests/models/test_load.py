"""Loading against HuggingFace's own forward, the copy-free layout, and one clear line for every failure."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import einops
import huggingface_hub
import pytest
import torch
from conftest import LLAMA3_ROPE
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import star_tl as star
from star_tl.data.chat import render, reply_ids
from star_tl.errors import StarError
from star_tl.models import load as loading
from star_tl.models import size as sizes
from star_tl.models import weights as reading
from star_tl.models.batch import make_batch
from star_tl.models.layout import copy_free_layout, is_copy_free
from star_tl.models.load import fingerprint

Write = Callable[..., Path]
Tensors = dict[str, torch.Tensor]

# What one family member or another does otherwise than the fixture's plain model.
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "one key-value head": {"num_key_value_heads": 1},
    "as many key-value heads": {"num_key_value_heads": 4},
    "tied embeddings": {"tie_word_embeddings": True},
    # Heads wide enough that one frequency lies in the smooth middle of the scaling.
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE, "head_dim": 32},
    "wide heads": {"head_dim": 24},
    "narrow heads": {"head_dim": 4, "num_key_value_heads": 4},
    "other constants": {
        "rms_norm_eps": 0.3,
        "hidden_act": "gelu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    },
}
# Longer than the 64 positions from which llama3's rope scales.
LENGTH = 150
# Float32 through three layers, logits of order 1: what another order of summation can do is near 1e-6.
CLOSE = {"atol": 1e-4, "rtol": 0.0}


def tokens(rows: int = 2, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 600, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def theirs(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """HuggingFace's logits for the folder, in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits


@torch.no_grad()
def ours(folder: Path, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
    return star.load_model(folder, device="cpu", **settings)(ids)


def edited(
    source: Path,
    target: Path,
    config: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    tensors: Callable[[Tensors], object] | None = None,
) -> Path:
    """A copy of a folder with other settings (None: removed), without some files, with other tensors."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    settings = json.loads((target / "config.json").read_text()) | (config or {})
    kept = {key: value for key, value in settings.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    if tensors:
        weights = load_file(target / "model.safetensors")
        tensors(weights)
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    for name in drop:
        (target / name).unlink()
    return target


def zero_gate_and_up(weights: Tensors) -> None:
    for name, tensor in weights.items():
        if name.endswith(("gate_proj.bias", "up_proj.bias")):
            tensor.zero_()


@pytest.fixture(scope="module")
def biased_folder(write_llama: Write) -> Path:
    """Biases everywhere, those of gate and up included, which HookedTransformer cannot hold."""
    return write_llama(attention_bias=True, mlp_bias=True)


# --- equal to HuggingFace --------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_huggingface(write_llama: Write, name: str) -> None:
    folder, ids = write_llama(**VARIANTS[name]), tokens()
    expected = theirs(folder, ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(folder, ids), expected, **CLOSE)


@pytest.mark.parametrize("kv_heads", [2, 4], ids=["grouped", "ungrouped"])
def test_logits_with_biases_equal_huggingface(write_llama: Write, tmp_path: Path, kv_heads: int) -> None:
    source = write_llama(attention_bias=True, mlp_bias=True, num_key_value_heads=kv_heads)
    folder = edited(source, tmp_path, tensors=zero_gate_and_up)
    ids = tokens()
    expected = theirs(folder, ids)
    torch.testing.assert_close(ours(folder, ids), expected, **CLOSE)


def test_a_sharded_checkpoint_is_read_whole(tiny_folder: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    folder = edited(tiny_folder, tmp_path, drop=("model.safetensors",))
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    torch.testing.assert_close(ours(folder, tokens()), theirs(tiny_folder, tokens()), **CLOSE)


def test_an_older_config_is_read(write_llama: Write, tmp_path: Path) -> None:
    """Before transformers 5 rope_theta stood at the top level, the scaling beside it, the head size nowhere."""
    source = write_llama(rope_parameters=LLAMA3_ROPE)
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    old = {"rope_parameters": None, "head_dim": None, "rope_theta": 500000.0, "rope_scaling": scaling}
    folder = edited(source, tmp_path, config=old)
    torch.testing.assert_close(ours(folder, tokens()), theirs(source, tokens()), **CLOSE)


def test_the_oldest_config_is_read(write_llama: Write, tmp_path: Path) -> None:
    source = write_llama(num_key_value_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    new = ("num_key_value_heads", "head_dim", "rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias")
    folder = edited(source, tmp_path, config={**dict.fromkeys(new), "rope_theta": 100.0})
    torch.testing.assert_close(ours(folder, tokens()), theirs(source, tokens()), **CLOSE)


def test_a_left_padded_row_equals_the_row_alone(tiny: HookedTransformer) -> None:
    device = tiny.cfg.device
    ids, pads = tokens(3, 40).to(device), (0, 13, 31)
    mask = torch.stack([torch.arange(40, device=device) >= n for n in pads])
    padded = tiny(ids.masked_fill(~mask, 4), attention_mask=mask.int())
    for row, n in enumerate(pads):
        torch.testing.assert_close(padded[row, n:], tiny(ids[row : row + 1, n:])[0], **CLOSE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_all_parameters_have_the_dtype_and_are_frozen(tiny_folder: Path, dtype: str) -> None:
    model = star.load_model(tiny_folder, dtype=dtype, device="cpu")
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert model.cfg.model_name == str(tiny_folder)
    assert model(tokens(1, 5)).dtype == getattr(torch, dtype)


def test_float64_is_float64_throughout(tiny_folder: Path) -> None:
    """So that finite differences in float64 mean something: no float32 is left inside."""
    model = star.load_model(tiny_folder, dtype="float64", device="cpu")
    assert {b.dtype for name, b in model.named_buffers() if "rotary" in name} == {torch.float64}
    _, cache = model.run_with_cache(tokens(1, 9))
    assert {activation.dtype for activation in cache.values()} == {torch.float64}


@pytest.mark.parametrize("adds_bos", [False, True])
def test_to_tokens_has_bos_once(tiny_folder: Path, tmp_path: Path, adds_bos: bool) -> None:
    folder = edited(tiny_folder, tmp_path)
    if adds_bos:
        tok = AutoTokenizer.from_pretrained(folder)
        special = [("<|begin_of_text|>", 0)]
        tok.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=special)
        tok.save_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder)("x")["input_ids"][0] == 0
    ids = star.load_model(folder).to_tokens("hello")[0].tolist()
    assert ids[0] == 0
    assert ids.count(0) == 1


def test_a_tokenizer_without_special_tokens_can_still_pad(tiny_folder: Path, tmp_path: Path) -> None:
    folder = edited(tiny_folder, tmp_path, drop=("tokenizer_config.json",))
    model = star.load_model(folder, device="cpu")
    assert model.tokenizer.pad_token_id is None
    batch = make_batch(model, [[7, 8, 9], [5]])
    assert batch.mask.tolist() == [[True] * 3, [False, False, True]]
    assert batch.tokens[0].tolist() == [7, 8, 9]


def test_loading_prints_nothing(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    star.load_model(tiny_folder)
    assert capfd.readouterr().out == ""


def test_in_bfloat16_the_likeliest_token_is_huggingfaces() -> None:
    """On text like that the demo model was trained on, against HuggingFace's plain attention.

    Its fused attention rounds elsewhere, and near-ties turn: HuggingFace's own two agree with one another no better
    than HookedTransformer does with the fused one.
    """
    model = star.load_model("demo", dtype="bfloat16", device="cpu")
    plain, fused = (
        LlamaForCausalLM.from_pretrained(loading.DEMO, dtype=torch.bfloat16, attn_implementation=kind).eval()
        for kind in ("eager", "sdpa")
    )
    tops = []
    for pair in list(star.load_pairs("emotional_support").extraction)[:30]:
        ids = [*render(model.tokenizer, pair.context).ids, *reply_ids(model.tokenizer, pair.positive)]
        with torch.no_grad():
            row = torch.tensor([ids])
            logits = model(row)[0], plain(row).logits[0], fused(row).logits[0]
        tops.append(torch.stack([x.argmax(-1) for x in logits]))
    found, eager, sdpa = torch.cat(tops, 1)
    assert len(found) > 1000

    def agree(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a == b).float().mean())

    assert agree(found, eager) >= 0.99
    assert agree(found, sdpa) >= agree(eager, sdpa) - 0.005


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_first_layers_alone_give_the_residual_stream_of_the_whole(tiny_folder: Path, layers: int) -> None:
    whole, part = star.load_model(tiny_folder), star.load_model(tiny_folder, first_n_layers=layers)
    assert part.cfg.n_layers == len(part.blocks) == layers
    ids = tokens().to(whole.cfg.device)
    with torch.no_grad():
        assert torch.equal(part(ids, stop_at_layer=layers), whole(ids, stop_at_layer=layers))


# --- memory layout ---------------------------------------------------------------------------


class WeightCopies(TorchDispatchMode):
    """Counts the operations that write out a copy of one of a model's weight matrices."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        matrices = ((name, p) for name, p in model.named_parameters() if p.ndim > 1 and ".b_" not in name)
        self.weights = {p.untyped_storage().data_ptr(): name for name, p in matrices if "pos_embed" not in name}
        self.copied: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket.__name__
        if operation in ("clone", "copy_", "_to_copy", "_reshape_copy"):
            source = args[1] if operation == "copy_" else args[0]
            name = self.weights.get(source.untyped_storage().data_ptr())
            self.copied += [name] if name else []
        return func(*args, **(kwargs or {}))


def weight_copies(model: HookedTransformer) -> list[str]:
    with torch.no_grad(), WeightCopies(model) as watch:
        model(tokens(1, 3))
    return watch.copied


def stock(seed: int = 0, **settings: Any) -> HookedTransformer:
    """A model as TransformerLens makes it, every parameter contiguous."""
    shape = {"n_layers": 2, "d_model": 32, "d_head": 8, "n_heads": 4, "d_mlp": 48, "n_ctx": 64, "d_vocab": 600}
    llama = {
        "act_fn": "silu",
        "gated_mlp": True,
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "n_key_value_heads": 2,
        "final_rms": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(HookedTransformerConfig(**(shape | llama | settings), device="cpu", seed=seed))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    return model.requires_grad_(False)


STOCK: dict[str, dict[str, Any]] = {
    "grouped": {},
    "ungrouped": {"n_key_value_heads": None},
    "bfloat16": {"dtype": torch.bfloat16},
    "gpt2": {
        "n_key_value_heads": None,
        "gated_mlp": False,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "rotary_dim": None,
        "final_rms": False,
    },
}


@pytest.mark.parametrize("name", ["grouped queries", "as many key-value heads", "tied embeddings", "wide heads"])
def test_the_forward_of_a_loaded_model_copies_no_weight(write_llama: Write, name: str) -> None:
    model = star.load_model(write_llama(**VARIANTS[name]), device="cpu")
    assert is_copy_free(model)
    assert weight_copies(model) == []


def test_transformer_lens_own_rearrangements_are_views(tiny: HookedTransformer) -> None:
    block = tiny.blocks[0]
    mlp, attn = block.mlp, block.attn
    for weight in (mlp.W_gate, mlp.W_in, mlp.W_out, tiny.unembed.W_U):
        assert weight.T.contiguous().data_ptr() == weight.data_ptr()
    for weight in (attn.W_Q, attn._W_K, attn._W_V):
        assert einops.rearrange(weight, "h m d -> (h d) m").contiguous().data_ptr() == weight.data_ptr()
    out = einops.rearrange(attn.W_O, "h d m -> m (h d)").contiguous()
    assert out.data_ptr() == attn.W_O.data_ptr()


def test_tied_embeddings_are_held_once(write_llama: Write) -> None:
    model = star.load_model(write_llama(tie_word_embeddings=True), device="cpu")
    assert model.embed.W_E.data_ptr() == model.unembed.W_U.data_ptr()


@pytest.mark.parametrize("kv_heads", [2, 4], ids=["grouped", "ungrouped"])
def test_fused_weights_lie_in_one_storage_in_huggingface_order(write_llama: Write, kv_heads: int) -> None:
    folder = write_llama(num_key_value_heads=kv_heads)
    weights, block = load_file(folder / "model.safetensors"), star.load_model(folder, device="cpu").blocks[1]
    side = "_" if kv_heads != 4 else ""

    def in_memory(first: torch.Tensor, rows: int, *others: torch.Tensor) -> torch.Tensor:
        for tensor in others:
            assert tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        assert first.untyped_storage().nbytes() == rows * 32 * 4
        return torch.as_strided(first, (rows, 32), (32, 1), 0)

    def stored(*names: str) -> torch.Tensor:
        return torch.cat([weights[f"model.layers.1.{name}.weight"] for name in names])

    attn = {name: getattr(block.attn, name) for name in ("W_Q", f"{side}W_K", f"{side}W_V")}
    fused = in_memory(attn.pop("W_Q"), (4 + 2 * kv_heads) * 8, *attn.values())
    assert torch.equal(fused, stored("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
    fused = in_memory(block.mlp.W_gate, 2 * 64, block.mlp.W_in)
    assert torch.equal(fused, stored("mlp.gate_proj", "mlp.up_proj"))


def test_the_context_length_costs_no_memory(write_llama: Write) -> None:
    """131,072 positions: no mask of that many squared, and one table of angles for all layers."""
    model = star.load_model(write_llama(max_position_embeddings=131072), device="cpu")
    assert model.cfg.n_ctx == 131072
    assert sum(b.nbytes for b in model.buffers()) < 1e6
    assert len({block.attn.rotary_sin.data_ptr() for block in model.blocks}) == 1
    with torch.no_grad():
        assert model(tokens(1, 2100)).isfinite().all()  # past the part of the table that is made at first


def test_a_loaded_state_dict_goes_back_in(tiny_folder: Path) -> None:
    model = star.load_model(tiny_folder, device="cpu")
    before, state = model(tokens()), {k: v.clone() for k, v in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.zero_()
    model.load_state_dict(state)
    assert is_copy_free(model)
    assert torch.equal(model(tokens()), before)


# Runs in a process of its own: prints the bytes of the weights and by how much loading them raised the peak.
PEAK = """
import sys
from pathlib import Path
import torch
import star_tl as star
star.load_model("demo", device="cpu")
status = lambda key: int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024
before = status("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")
model = star.load_model(sys.argv[1], dtype=sys.argv[2], device="cpu")
held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
print(sum(held.values()), status("VmHWM:") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure a peak")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_the_weights_once(write_llama: Write, dtype: str) -> None:
    folder = write_llama(hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, head_dim=64)
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), dtype], capture_output=True, text=True, check=True
    ).stdout.split()
    weights, peak = map(int, found)
    assert weights > 1.4e8
    # A piece that is converted on its way is the only other memory, and some tens of megabytes.
    assert peak < 1.15 * weights + (70e6 if dtype == "bfloat16" else 0)


@pytest.mark.parametrize("name", STOCK)
def test_copy_free_layout_keeps_outputs_bit_identical_and_ends_the_copying(name: str) -> None:
    model, ids = stock(**STOCK[name]), tokens(2, 9)
    one, many = model(ids[:1, :1]), model(ids)
    assert not is_copy_free(model)
    assert len(weight_copies(model)) >= 2 * 4 + 1  # four matrices of each attention, and the unembedding
    assert copy_free_layout(model) is model
    assert is_copy_free(model)
    assert weight_copies(model) == []
    assert torch.equal(model(ids), many)
    assert torch.equal(model(ids[:1, :1]), one)


@pytest.mark.parametrize("name", ["grouped", "ungrouped", "gpt2"])
def test_state_dicts_go_between_both_layouts(name: str) -> None:
    plain, relaid, ids = stock(0, **STOCK[name]), copy_free_layout(stock(1, **STOCK[name])), tokens(2, 9)
    before, shapes = plain(ids), {k: v.shape for k, v in plain.state_dict().items()}
    assert {k: v.shape for k, v in relaid.state_dict().items()} == shapes
    assert not torch.equal(relaid(ids), before)
    relaid.load_state_dict(plain.state_dict())
    assert is_copy_free(relaid)
    assert torch.equal(relaid(ids), before)
    other = stock(2, **STOCK[name])
    other.load_state_dict(relaid.state_dict())
    assert torch.equal(other(ids), before)


# --- fingerprint -----------------------------------------------------------------------------


def test_fingerprint_is_the_same_in_every_dtype_and_layout(tiny_folder: Path) -> None:
    prints = {d: fingerprint(star.load_model(tiny_folder, dtype=d, device="cpu")) for d in loading.DTYPES}
    assert len({prints[d] for d in ("float64", "float32", "bfloat16")}) == 1
    half = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    prints = {fingerprint(star.load_model(half, dtype=d, device="cpu")) for d in loading.DTYPES}
    assert len(prints) == 1, "of weights of 16 bits in every dtype"
    plain = stock()
    before = fingerprint(plain)
    assert fingerprint(copy_free_layout(plain)) == before
    assert len(before) == 16
    int(before, 16)


def test_fingerprint_tells_weights_apart(write_llama: Write, tiny_folder: Path, tmp_path: Path) -> None:
    def tune(weights: Tensors) -> None:  # as far as a light fine-tuning goes: 1 % of the weights' spread
        torch.manual_seed(1)
        for tensor in weights.values():
            tensor += 0.01 * tensor.std() * torch.randn_like(tensor)

    folders = [tiny_folder, write_llama(seed=1), write_llama(num_hidden_layers=2), edited(tiny_folder, tmp_path)]
    edited(tiny_folder, folders[3], tensors=tune)
    assert len({fingerprint(star.load_model(f, device="cpu")) for f in folders}) == len(folders)


# --- failures --------------------------------------------------------------------------------


def refused(name: str | Path, *words: str, **settings: Any) -> str:
    """Loading fails with one line that holds the words."""
    with pytest.raises(StarError) as failure:
        star.load_model(name, **settings)
    message = str(failure.value)
    assert [w for w in words if w not in message] == [], message
    assert "\n" not in message
    return message


def drop_up_projection(weights: Tensors) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def drop_lm_head(weights: Tensors) -> None:
    del weights["lm_head.weight"]


def quantize_one(weights: Tensors) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)


AGAIN = "download or save the model again"
BROKEN: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no config": ({"drop": ("config.json",)}, ("no config.json", "save_pretrained")),
    "no weights": ({"drop": ("model.safetensors",)}, ("lacks model.safetensors", "as safetensors")),
    "no tokenizer": ({"drop": ("tokenizer.json",)}, ("No tokenizer", "save one beside the weights")),
    "tensor missing": ({"tensors": drop_up_projection}, ("lacks model.layers.1.mlp.up_proj.weight", AGAIN)),
    "untied head missing": ({"tensors": drop_lm_head}, ("lacks lm_head.weight", AGAIN)),
    "layers missing": ({"config": {"num_hidden_layers": 4}}, ("lacks model.layers.3.", AGAIN)),
    "biases missing": ({"config": {"attention_bias": True}}, ("self_attn.q_proj.bias", AGAIN)),
    "MLP biases missing": ({"config": {"mlp_bias": True}}, ("mlp.down_proj.bias", AGAIN)),
    "other width": ({"config": {"hidden_size": 64, "head_dim": None}}, ("do not fit its config.json",)),
    "other head count": ({"config": {"num_attention_heads": 8}}, ("do not fit its config.json",)),
    "other vocabulary": ({"config": {"vocab_size": 599}}, ("do not fit its config.json", "embed_tokens")),
    "other MLP": ({"config": {"intermediate_size": 65}}, ("do not fit its config.json", "mlp.gate_proj")),
    "no sizes": (
        {"config": {"hidden_size": None, "num_attention_heads": None}},
        ("config.json lacks hidden_size, num_attention_heads", AGAIN),
    ),
    "quantized": ({"config": {"quantization_config": {"bits": 4}}}, ("is quantized", "unquantized checkpoint")),
    "another architecture": (
        {"config": {"architectures": ["PersimmonForCausalLM"]}},
        ("cannot hold a model of architecture PersimmonForCausalLM", "name one that it can"),
    ),
    "unknown to transformers": (
        {"config": {"architectures": ["YetiForCausalLM"], "model_type": "yeti"}},
        ("transformers cannot make a model", "use another checkpoint"),
    ),
    "another rope": (
        {"config": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}},
        ("'yarn' is not supported", "'llama3' or none"),
    ),
    "8-bit weights": (
        {"tensors": quantize_one},
        ("holds model.layers.1.mlp.up_proj.weight as F8_E4M3", "bfloat16 or float32"),
    ),
    "an old rope": (
        {"config": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}},
        ("'linear' is not supported", "'llama3' or none"),
    ),
    "another activation": ({"config": {"hidden_act": "quick_gelu"}}, ("'quick_gelu' is not supported", "silu")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(tiny_folder: Path, tmp_path: Path, case: str) -> None:
    edits, words = BROKEN[case]
    refused(edited(tiny_folder, tmp_path, **edits), *words, device="cpu")


@pytest.mark.parametrize("text", ["{'vocab_size': 600}", '{"vocab_size": 600,\n', "[]", "\n"])
def test_a_broken_config_is_refused_in_one_line(tiny_folder: Path, tmp_path: Path, text: str) -> None:
    folder = edited(tiny_folder, tmp_path)
    (folder / "config.json").write_text(text)
    refused(folder, str(folder / "config.json"), "JSON", AGAIN)


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.5, 0.999])
def test_truncated_weights_are_refused_in_one_line(tiny_folder: Path, tmp_path: Path, keep: float) -> None:
    path = edited(tiny_folder, tmp_path) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refused(tmp_path, str(path), "is damaged", "download it again")


def test_an_error_in_one_of_several_readers_is_the_one_that_is_seen(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reading._READERS, "cpu", 3)
    threads: set[int] = set()
    read = reading.StoredTensor.read

    def interrupted(stored: reading.StoredTensor, target: torch.Tensor) -> None:
        threads.add(threading.get_ident())
        if len(stored.shape) > 1:
            raise error
        read(stored, target)

    monkeypatch.setattr(reading.StoredTensor, "read", interrupted)
    before = threading.active_count()
    for error in (StarError("It is damaged: download it again."), KeyboardInterrupt()):
        with pytest.raises(type(error)) as failure:
            star.load_model(tiny_folder, device="cpu")
        assert failure.value is error
    assert threading.get_ident() not in threads
    assert threading.active_count() == before, "no reader is left behind"


def test_several_readers_read_what_one_reads_also_in_inference_mode(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reading._PIECE, "cpu", 100)
    found = []
    for readers in (1, 3):
        monkeypatch.setitem(reading._READERS, "cpu", readers)
        for mode in (torch.inference_mode, torch.no_grad):
            for dtype in ("float32", "bfloat16"):
                with mode():
                    found.append(star.load_model(tiny_folder, dtype=dtype, device="cpu").W_in.float())
    for one, several in zip(found[:4], found[4:], strict=True):
        assert torch.equal(one, several)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_goes_onto_a_gpu_is_what_the_processor_reads(tiny_folder: Path, dtype: str) -> None:
    here, there = (star.load_model(tiny_folder, dtype=dtype, device=device) for device in ("cpu", "cuda"))
    for (name, own), other in zip(here.named_parameters(), there.parameters(), strict=True):
        assert torch.equal(own, other.cpu()), name


def test_the_default_is_float16_on_a_gpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert sizes.default_dtype(8_030_261_248, "cuda:0") == expected
        assert sizes.default_dtype(8_030_261_248, "cpu") == torch.bfloat16
        assert sizes.default_dtype(135_000_000, "cuda:0") == torch.float32


def test_memory_that_pytorch_keeps_for_the_next_tensor_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 40)
    assert sizes.free_memory("cuda:0") == 35


def test_a_missing_or_unlisted_shard_is_refused_in_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    folder = edited(tiny_folder, tmp_path, drop=("model.safetensors",))
    LlamaForCausalLM.from_pretrained(tiny_folder).save_pretrained(folder, max_shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    shard = sorted(set(json.loads(index.read_text())["weight_map"].values()))[1]
    (folder / shard).rename(folder / "elsewhere")
    refused(folder, f"lacks {shard}", AGAIN)
    (folder / "elsewhere").rename(folder / shard)
    index.write_text(index.read_text()[:-9])
    refused(folder, str(index), "not valid JSON", AGAIN)
    index.write_text("{}")
    refused(folder, "checkpoint lacks", AGAIN)


def test_biases_that_transformer_lens_cannot_hold_are_refused(biased_folder: Path) -> None:
    refused(biased_folder, "gate or up projection", "HookedTransformer cannot hold them")


@pytest.mark.parametrize("projection", ["gate", "up"])
def test_a_single_unholdable_bias_is_refused(biased_folder: Path, tmp_path: Path, projection: str) -> None:
    def keep_one(weights: Tensors) -> None:
        zero_gate_and_up(weights)
        weights[f"model.layers.2.mlp.{projection}_proj.bias"][7] = 0.1

    refused(edited(biased_folder, tmp_path, tensors=keep_one), "gate or up projection")


def test_a_tokenizer_without_chat_template_warns_where_it_is_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    folder = edited(tiny_folder, tmp_path, drop=("chat_template.jinja",))
    with pytest.warns(UserWarning, match=r"no chat template: .* plain 'User: … Assistant:' text") as caught:
        star.load_model(folder)
    assert [w.filename for w in caught if "chat template" in str(w.message)] == [__file__]
    assert "\n" not in str(caught[0].message)


def test_unknown_names_are_refused_with_suggestions() -> None:
    assert "Did you mean 'demo'?" in refused("demoo", "Unknown model 'demoo'", "a folder or a Hub name", "Known: demo")
    assert "Did you mean 'float32'" in refused("demo", "Unknown dtype 'float3'", "bfloat16", dtype="float3")
    refused("demo", "Device 'tpuu' cannot be used", "'cpu'", device="tpuu")
    refused("demo", "first_n_layers is 9", "use 1 to 8", first_n_layers=9)
    refused("demo", "first_n_layers is 0", "at least 1", first_n_layers=0)
    refused("no such/folder", "neither a folder nor a model on the Hub", "Known: demo")


def test_an_unreachable_hub_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("nobody-at-all/no-such-model", "not downloaded", "Hub cannot be reached", "connect once", "local folder")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            GatedRepoError(
                "Access to model is restricted.\nVisit it.", response=SimpleNamespace(headers={}, request=None)
            ),
            ("is gated", "accept its licence", "HF_TOKEN", "hf auth login"),
        ),
        (
            RepositoryNotFoundError("404 Client Error.\n", response=SimpleNamespace(headers={}, request=None)),
            ("neither a folder nor a model on the Hub", "Did you mean 'meta-llama/Llama-3.1-8B-Instruct'"),
        ),
        (OSError(errno.ENOSPC, "No space left on device"), ("disk is full", "HF_HOME")),
        (ConnectionError("Name or service\nnot known"), ("Hub cannot be reached", "connect once")),
    ],
    ids=["gated", "not found", "disk full", "no connection"],
)
def test_what_the_hub_refuses_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: tuple[str, ...]
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    refused("meta-llama/Llama-3.1-8B-Instuct", "meta-llama/Llama-3.1-8B-Instuct", *words)


def test_a_hub_name_downloads_all_that_loading_needs(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = edited(tiny_folder, tmp_path / "hub", drop=("model.safetensors",))
    LlamaForCausalLM.from_pretrained(tiny_folder).save_pretrained(hub, max_shard_size="40KB")
    for again in ("pytorch_model.bin", "consolidated.safetensors"):
        (hub / again).write_bytes(b"the same again")
    (tmp_path / "cache").mkdir()

    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == "someone/tiny"
        asked.append(allow_patterns)
        for file in filter_repo_objects([p.name for p in hub.iterdir()], allow_patterns=allow_patterns):
            shutil.copy(hub / file, tmp_path / "cache" / file)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = star.load_model("someone/tiny", device="cpu")
    assert asked[0] == ["config.json"], "what does not fit shall not be downloaded"
    assert model.cfg.model_name == "someone/tiny"
    assert model.tokenizer.chat_template
    assert not (tmp_path / "cache" / "pytorch_model.bin").exists()
    assert not (tmp_path / "cache" / "consolidated.safetensors").exists()
    torch.testing.assert_close(model(tokens()), theirs(tiny_folder, tokens()), **CLOSE)


def test_a_hub_model_of_an_unknown_architecture_is_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = edited(tiny_folder, tmp_path, config={"architectures": ["PersimmonForCausalLM"]})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    refused("someone/persimmon", "PersimmonForCausalLM", "name one that it can", "Known: GPT2LMHeadModel")


# --- too large for memory --------------------------------------------------------------------

LARGE = {
    "8B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "1B, tied": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "half a billion": LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        head_dim=96,
    ),
}


@pytest.mark.parametrize(("size", "default"), [("8B", 2), ("1B, tied", 2), ("half a billion", 4)])
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_a_model_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, default: int, dtype: str | None
) -> None:
    """Above a billion parameters the default is bfloat16; the figure is HuggingFace's count of parameters."""
    config = LARGE[size]
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        count = LlamaForCausalLM(config).num_parameters()
    needed = count * {None: default, "float32": 4, "float64": 8}[dtype]

    def memory(available: float) -> None:
        monkeypatch.setattr(sizes.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))

    memory(0.97 * needed)
    free = f"{0.97 * needed / 1e9:.1f} GB free"
    refused(tmp_path, f"needs {needed / 1e9:.1f} GB", free, "smaller model", dtype=dtype, device="cpu")
    memory(1.01 * needed)
    refused(tmp_path, "No tokenizer", dtype=dtype, device="cpu")


@pytest.mark.parametrize(
    ("gigabytes", "dtype", "words"),
    [
        (20.0, "float32", ("in float32 and cpu has 20.0 GB free", "dtype='bfloat16' (16.1 GB)")),
        (10.0, "bfloat16", ("first_n_layers=18", "smaller model")),
        (10.0, "float32", ("first_n_layers=18, dtype='bfloat16'",)),
        (1.0, "bfloat16", ("a larger device, or a smaller model",)),
    ],
)
def test_what_would_fit_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float, dtype: str, words: tuple[str, ...]
) -> None:
    config = LARGE["8B"]
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(sizes.psutil, "virtual_memory", lambda: SimpleNamespace(available=gigabytes * 1e9))
    message = refused(tmp_path, *words, dtype=dtype, device="cpu")
    assert ("first_n_layers" in message) == any("first_n_layers" in w for w in words) or gigabytes == 20.0
    if "first_n_layers" in message:
        refused(tmp_path, "No tokenizer", dtype="bfloat16", device="cpu", first_n_layers=18)
        refused(tmp_path, "GB", dtype="bfloat16", device="cpu", first_n_layers=19)


def test_a_gpu_too_small_points_to_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "free_memory", lambda device: 4e9 if device.startswith("cuda") else 64e9)
    with pytest.raises(StarError, match=r"cuda has 4\.0 GB free: use first_n_layers=4, device='cpu', a larger device"):
        sizes.check_memory("8B", sizes.llama_size(LARGE["8B"].to_dict()), torch.bfloat16, "cuda")


@pytest.mark.parametrize("name", [name for name in sizes.SHAPES if "/" in name])
def test_the_known_shapes_have_the_parameters_that_their_names_say(name: str) -> None:
    published = {"1B": 1_235_814_400, "3B": 3_212_749_824, "8B": 8_030_261_248, "70B": 70_553_706_496}
    assert sizes.llama_size(sizes.SHAPES[name]).parameters == published[name.split("-")[-2]]


def test_a_template_that_writes_todays_date_is_said_once_with_its_remedy(write_llama) -> None:
    folder = write_llama()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dated = "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    tokenizer.chat_template = dated + "{{ date_string }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    with pytest.warns(UserWarning, match=r"^This chat template writes today's date [^\n]+date_string[^\n]+$"):
        star.load_model(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        star.load_model(folder, template_args={"date_string": "26 Jul 2024"})


def test_the_demo_model_is_found_by_a_path_of_its_name_too(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert loading.find_checkpoint(Path("demo")) == loading.find_checkpoint("demo")
    (tmp_path / "demo").mkdir()
    assert loading.find_checkpoint(Path("demo")) != loading.find_checkpoint("demo")
