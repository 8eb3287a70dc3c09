"""What must hold on TransformerLens 3 and on 4 alike, for the kind of model that ``load_model`` gives there by default.

The truth is HuggingFace's forward: for the logits of many architectures in a process of its own, as building a bridge
may replace attention functions of transformers for the rest of a process (TransformerLens #1795).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import by_hand
import pytest
import torch
from by_hand import unequal_pairs
from families import FAMILIES, LLAMA, write_random
from hf_reference import OnHuggingFace, of
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import star_tl as star
from star_tl.attribution.exact import exact_effects
from star_tl.attribution.verify import verify
from star_tl.data.chat import render
from star_tl.errors import StarError
from star_tl.locus import Locus
from star_tl.models.backend import Model, empty_cache, residual_stream, unembed
from star_tl.models.lens import HAS_HOOKED_TRANSFORMER, HookedTransformer, TransformerBridge
from star_tl.models.size import SHAPES, llama_size
from star_tl.steering.condition import Condition

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}  # another order of summation in float32, of numbers of order 1
# Llama first: its bridge is built before HuggingFace's gemma would be asked, were it asked in this process.
BRIDGED = (*LLAMA, *FAMILIES, "granite", "olmo", "olmo-2", "gemma-3", "smollm-3", "mixtral")
PROMPTS = ("No.", "Could you help me, please?", "I lost my job on Monday, and I have told nobody about it.")
ALONE = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
folders, given, out = json.loads(sys.argv[1]), load_file(sys.argv[2]), {}
for family, folder in folders.items():
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        out[family] = model(given["tokens"]).logits
assert "transformer_lens" not in sys.modules
save_file(out, sys.argv[3])
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, Path]:
    return {family: write_random(family, tmp_path_factory.mktemp(family), tokenizer) for family in BRIDGED}


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(5, 600, (2, 60), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def alone(
    folders: dict[str, Path], tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """Logits of every family, from a process in which no bridge was ever built."""
    place = tmp_path_factory.mktemp("alone")
    save_file({"tokens": tokens}, place / "given.safetensors")
    names = json.dumps({family: str(folder) for family, folder in folders.items()})
    command = [sys.executable, "-c", ALONE, names, str(place / "given.safetensors"), str(place / "out.safetensors")]
    subprocess.run(command, check=True, capture_output=True)
    return load_file(place / "out.safetensors")


def test_every_module_can_be_imported() -> None:
    names = [module.name for module in pkgutil.walk_packages(star.__path__, "star_tl.")]
    if importlib.util.find_spec("fastapi") is None:  # the extra "serve", which is not part of this environment
        names = [name for name in names if not name.startswith("star_tl.serve.")]
    assert len(names) > 30
    for name in names:
        importlib.import_module(name)


def test_the_default_backend_is_the_one_that_is_there(tiny: Model) -> None:
    assert type(tiny) is (HookedTransformer if HAS_HOOKED_TRANSFORMER else TransformerBridge)
    assert tiny.cfg.dtype == torch.float32
    assert not any(p.requires_grad for p in tiny.parameters())


@pytest.mark.skipif(HAS_HOOKED_TRANSFORMER, reason="TransformerLens 3 has HookedTransformer")
def test_the_backend_that_is_not_there_is_refused_with_what_to_install() -> None:
    with pytest.raises(StarError, match=r"^TransformerLens 4\S+ has no .*: pip install 'transformer_lens>=3.9,<4', or"):
        star.load_model("demo", backend="hooked")
    assert all(llama_size(shape).most_devices == 1 for shape in SHAPES.values())  # a bridge is not spread


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("backend", [pytest.param("hooked", marks=pytest.mark.hooked), "bridge"])
def test_a_model_computes_in_the_dtype_that_was_asked_for(tiny_folder: Path, dtype: str, backend: str) -> None:
    wanted = getattr(torch, dtype)
    model = star.load_model(tiny_folder, dtype, "cpu", backend=backend)
    seen: set[torch.dtype] = set()
    names = [f"blocks.{layer}.{point}" for layer in range(3) for point in ("hook_resid_post", "attn.hook_z")]
    hooks = [(name, lambda a, hook: seen.add(a.dtype)) for name in names]
    with torch.no_grad():
        model.run_with_hooks(torch.tensor([[5, 6, 7, 8]]), fwd_hooks=hooks)
    assert seen == {wanted} == {p.dtype for p in model.parameters()}


@torch.no_grad()
def padded_and_cached(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """Logits at the end of the first row, and of the second, pushed to the right by padding, from two chunks."""
    rows, mask = torch.stack([tokens[0], tokens[1].roll(8)]), torch.ones_like(tokens)
    mask[1, :8] = 0
    cache = empty_cache(model, 2)
    for part in (slice(0, 31), slice(31, None)):
        residual = residual_stream(model, rows[:, part], mask[:, part], cache)
    return unembed(model, residual[:, -1:])[:, 0]


@pytest.mark.parametrize("family", BRIDGED)
def test_bridges_compute_what_huggingface_alone_computes(
    folders: dict[str, Path], alone: dict[str, torch.Tensor], tokens: torch.Tensor, family: str
) -> None:
    model = star.load_model(folders[family], device="cpu", backend="bridge")
    torch.testing.assert_close(model(tokens), alone[family], **CLOSE)
    expected = torch.stack([alone[family][0, -1], alone[family][1, -9]])
    torch.testing.assert_close(padded_and_cached(model, tokens), expected, **CLOSE)


# ---- everything that is done with a model, on the default one


@pytest.fixture(scope="module")
def truth(tiny_folder: Path, tokenizer: PreTrainedTokenizerFast) -> OnHuggingFace:
    return OnHuggingFace(tiny_folder, tokenizer)


def loci(layer: int) -> list[Locus]:
    points = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    return [Locus(f"blocks.{layer}.hook_{p}", (-1,)) for p in points] + [Locus(f"blocks.{layer}.attn.hook_z", (-1,), 3)]


@pytest.mark.parametrize("mode", ["auto", "one_batch", "two_passes", "layer_by_layer"])
def test_attribution_is_that_of_huggingface(tiny: Model, truth: Any, mode: str) -> None:
    attr = star.attribute(tiny, unequal_pairs(), mode=mode, progress=False)
    for name, wanted in by_hand.attribution(truth, unequal_pairs(), attr.window).items():
        torch.testing.assert_close(getattr(attr, name).double(), wanted.double(), **CLOSE)
    assert float(attr.scores.abs().max()) > 1e-2


def patched(truth: Any, pairs: star.Pairs, locus: Locus) -> float:
    """The exact effect at a position counted from the prompt's end, by patching HuggingFace's own modules."""
    (one,) = pairs
    clean, corrupted = by_hand.prompts(truth, pairs, one)
    effect, kept = 0.0, {}

    def keep(activation: torch.Tensor, hook: Any) -> None:
        kept[0] = activation[0, len(clean) - 1].clone()

    def put(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        out = activation.clone()
        where = (0, len(corrupted) - 1) if locus.head is None else (0, len(corrupted) - 1, locus.head)
        out[where] = kept[0] if locus.head is None else kept[0][locus.head]
        return out

    for sign, text in ((1, one.positive), (-1, one.negative)):
        answer = by_hand.reply(truth, text)
        truth.run_with_hooks(torch.tensor([clean + answer]), [(locus.hook_point, keep)])
        for hooks, weight in (([(locus.hook_point, put)], sign), ([], -sign)):
            logits = truth.run_with_hooks(torch.tensor([corrupted + answer]), hooks)[0]
            effect += weight * float(by_hand.half_metric(logits, len(corrupted), answer, one.metric))
    return effect


def test_exact_effects_are_those_of_huggingface(tiny: Model, truth: Any) -> None:
    pairs = replace(unequal_pairs(), pairs=unequal_pairs().pairs[:1])
    places = [locus for locus in loci(1) if "resid_mid" not in locus.hook_point]  # of no module of HuggingFace's
    found = exact_effects(tiny, pairs, places, progress=False)[0]
    expected = torch.tensor([patched(truth, pairs, locus) for locus in places])
    torch.testing.assert_close(found, expected, **CLOSE)
    assert float(expected.abs().max()) > 1e-2
    checked = verify(tiny, pairs, star.attribute(tiny, pairs, progress=False), top_k=3, sample=3, progress=False)
    assert checked.exact.isfinite().all()


@pytest.mark.parametrize("locus", loci(1), ids=str)
def test_steered_texts_and_scores_are_those_of_huggingface(tiny: Model, truth: Any, locus: Locus) -> None:
    width = 32 if locus.head is None else 8
    vector = of(4 * torch.randn(1, width, generator=torch.Generator().manual_seed(0)), locus)
    replies = star.generate(
        tiny, PROMPTS, vector.hooks(1.0, "generated"), max_new_tokens=6, temperature=0, progress=False, log_probs=True
    )
    unsteered = star.generate(tiny, PROMPTS, max_new_tokens=6, temperature=0, progress=False)
    assert [r.tokens for r in replies] != [r.tokens for r in unsteered]
    scores = star.score(
        tiny, star.load_pairs("politeness").trait, PROMPTS, replies, Condition("steered", vector, 1.0, "generated")
    )
    there = replace(locus, hook_point=locus.hook_point.replace("resid_mid", "attn_out"))  # the same sum
    for prompt, reply, logprob in zip(PROMPTS, replies, scores.logprob, strict=True):
        ids = list(render(tiny.tokenizer, prompt).ids)
        hooks = replace(vector, locus=there).hooks(1.0, "generated", prompt_length=len(ids))
        assert list(reply.tokens) == truth.greedy(ids, hooks, len(reply.tokens))
        plain = truth.run_with_hooks(torch.tensor([ids + list(reply.tokens)]), [])[0].log_softmax(-1)
        said = [float(plain[len(ids) - 1 + k, token]) for k, token in enumerate(reply.tokens)]
        assert logprob == pytest.approx(sum(said) / len(said), abs=1e-4)
    assert by_hand.hooks_left(tiny) == []


def test_vectors_are_those_of_huggingface(tiny: Model, truth: Any) -> None:
    pairs = replace(unequal_pairs(), pairs=unequal_pairs().pairs[:3])
    for locus in loci(2):
        differences = []
        for one in pairs:
            ends: list[torch.Tensor] = []
            for prompt in by_hand.prompts(truth, pairs, one):
                keep = (locus.hook_point, lambda a, hook, ends=ends: ends.append(a[0, -1].clone()))
                truth.run_with_hooks(torch.tensor([prompt]), [keep])
            differences.append(ends[0] - ends[1] if locus.head is None else (ends[0] - ends[1])[locus.head])
        expected = torch.stack(differences).mean(0)
        torch.testing.assert_close(star.extract_vector(tiny, pairs, locus).vector[0], expected, **CLOSE)


def test_a_run_goes_from_pairs_to_report(tiny: Model, tmp_path: Path) -> None:
    pairs = star.load_pairs("emotional_support")
    pairs = replace(pairs, pairs=pairs.extraction.pairs[:3])
    result = star.run(
        tiny, pairs, PROMPTS[:2], tmp_path / "run", strength=2.0, temperature=0, max_new_tokens=4, progress=False
    )
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert len(result.samples) >= 4
