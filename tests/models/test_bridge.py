"""TransformerBridge beside HookedTransformer: the same numbers, and architectures that only the bridge knows.

Both backends sum in another order in float32: what is of order 1 differs by about 1e-6, and tolerances leave room for
a factor of 10.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import by_hand
import pytest
import torch
from by_hand import equal_length_pair, unequal_pairs
from families import FAMILIES, LLAMA, write_as_llama, write_random
from hf_reference import OnHuggingFace, of
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import star_tl as star
from star_tl.attribution import POINTS
from star_tl.attribution.exact import exact_effects
from star_tl.attribution.verify import verify
from star_tl.cli import app
from star_tl.data.chat import render
from star_tl.errors import StarError
from star_tl.generation.decoding import StockPass, begin
from star_tl.locus import Locus, hook_name
from star_tl.models.lens import HAS_HOOKED_TRANSFORMER, HookedTransformer
from star_tl.models.load import fingerprint
from star_tl.steering.condition import Condition
from star_tl.steering.hooks import row_hooks
from star_tl.vectors import METHODS, SteeringVector

runner = CliRunner()
Both = tuple[HookedTransformer, TransformerBridge]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
TENSORS = (
    *("scores", "head_scores", "steering", "head_steering", "span_steering", "head_span_steering"),
    *("gradients", "differences", "position_effects"),
    *("metric_corrupted", "metric_clean"),
)
# Of different lengths, some longer than the sliding windows of Gemma-2 (8) and Mistral (32) here.
PROMPTS = (
    "No.",
    "Could you help me, please?",
    "I lost my job on Monday, and I have told nobody about it, not even my sister, who would be so worried about me.",
)


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    return lambda family, **more: write_random(family, tmp_path_factory.mktemp(family), tokenizer, **more)


@pytest.fixture(scope="module", params=[*FAMILIES, *LLAMA, "granite"])
def both(
    request: pytest.FixtureRequest,
    write: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
) -> Both:
    """A folder through both backends; for Granite, which HookedTransformer does not know, the Llama equal to it."""
    if not HAS_HOOKED_TRANSFORMER:
        pytest.skip("TransformerLens 4 has no HookedTransformer to compare with")
    folder = twin = write(request.param)
    if request.param == "granite":
        twin = write_as_llama(folder, tmp_path_factory.mktemp("twin"), tokenizer)
    return star.load_model(twin, device="cpu"), star.load_model(folder, device="cpu", backend="bridge")


@pytest.fixture(scope="module")
def bridges(write: Callable[..., Path]) -> Callable[[str], TransformerBridge]:
    made: dict[str, TransformerBridge] = {}

    def get(family: str) -> TransformerBridge:
        if family not in made:
            made[family] = star.load_model(write(family), device="cpu", backend="bridge")
        return made[family]

    return get


def points(model: Any) -> list[str]:
    """Those of star_tl's kinds of hook points that the model has."""
    return [p for p in POINTS if hook_name(p, 0) in model.hook_dict]


def loci(model: Any, layer: int, positions: tuple[int, ...] = (-2, -1)) -> list[Locus]:
    return [Locus(hook_name(p, layer), positions, 3 if p == "z" else None) for p in points(model)]


def noise(model: Any, locus: Locus, scale: float) -> SteeringVector:
    """A random vector, another row for every position."""
    width = model.cfg.d_model if locus.head is None else model.cfg.d_head
    return of(scale * torch.randn(len(locus.positions), width, generator=torch.Generator().manual_seed(0)), locus)


def few(trait: str, n: int) -> star.Pairs:
    pairs = star.load_pairs(trait)
    return replace(pairs, pairs=pairs.extraction.pairs[:n])


# ---- both backends, the same numbers


def test_logits_hook_points_and_fingerprint(both: Both) -> None:
    hooked, bridge = both
    assert isinstance(bridge, TransformerBridge)
    tokens = torch.randint(5, 600, (2, 60), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bridge(tokens), hooked(tokens), **CLOSE)
    assert points(bridge) == points(hooked)
    assert bridge.cfg.n_ctx == hooked.cfg.n_ctx == 512
    assert not any(p.requires_grad for module in bridge.modules() for p in module._parameters.values() if p is not None)
    twins = (
        type(bridge.original_model).__name__ == "GraniteForCausalLM"
    )  # whose weights are others: they hold the factors
    assert (fingerprint(bridge) == fingerprint(hooked)) is not twins


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "one_batch"},
        {"batch_size": 2},
        {"mode": "layer_by_layer"},
        {"method": "ig", "steps": 2},
        {"method": "relp"},
        {"method": "relp", "mode": "layer_by_layer"},
    ],
)
def test_attribution_at_every_hook_point(both: Both, options: dict[str, Any]) -> None:
    hooked, bridge = both
    whole = {key: value for key, value in options.items() if value != "layer_by_layer"}
    expected = star.attribute(hooked, unequal_pairs(), progress=False, **whole)
    found = star.attribute(bridge, unequal_pairs(), progress=False, **options)
    for name in TENSORS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True, **CLOSE)
    assert float(found.head_scores.abs().max()) > 1e-2
    assert found.tokens == expected.tokens


def test_exact_effects_at_every_hook_point(both: Both) -> None:
    pairs = replace(unequal_pairs(), pairs=unequal_pairs().pairs[:2])
    places = loci(both[0], 0, (-3, -1)) + loci(both[0], 2)
    expected, found = (exact_effects(model, pairs, places, progress=False) for model in both)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert float(found.abs().max()) > 1e-2
    for model in both:
        attr = star.attribute(model, pairs, progress=False)
        checked = verify(model, pairs, attr, top_k=3, sample=3, progress=False)
        assert {locus.hook_point for locus in checked.loci} <= set(model.hook_dict)
        assert checked.estimate.isfinite().all()


def test_vectors_of_every_method(both: Both) -> None:
    pairs = few("politeness", 4)
    for method in METHODS:
        for locus in (Locus("blocks.2.hook_resid_post", (-2, -1)), Locus("blocks.1.attn.hook_z", (-1,), 3)):
            expected, found = (star.extract_vector(model, pairs, locus, method).vector for model in both)
            # A principal direction is that of a difference of nearly equal numbers.
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_steered_texts_at_every_hook_point(both: Both) -> None:
    def written(model: Any, hooks: Any = ()) -> tuple[list[tuple[int, ...]], Tensor]:
        replies = star.generate(model, PROMPTS, hooks, max_new_tokens=10, temperature=0, progress=False, log_probs=True)
        return [r.tokens for r in replies], torch.tensor([p for r in replies for p in r.log_probs])

    hooked, bridge = both
    plain = written(bridge)
    for locus in loci(hooked, 1):
        for positions in ("generated", "locus") if "resid_post" in locus.hook_point else ("generated",):
            hooks = noise(hooked, locus, 8.0).hooks(1.0, positions)
            expected, found = written(hooked, hooks), written(bridge, hooks)
            assert found[0] == expected[0]
            torch.testing.assert_close(found[1], expected[1], **CLOSE)
            assert found[0] != plain[0] or float((found[1] - plain[1]).abs().max()) > 0.01
    assert by_hand.hooks_left(bridge) == []


def test_scores_of_steered_replies(both: Both) -> None:
    pairs, vector = few("politeness", 1), noise(both[0], Locus("blocks.1.hook_resid_post"), 8.0)
    replies = star.generate(both[0], PROMPTS, max_new_tokens=10, temperature=0, progress=False)
    expected, found = (
        star.score(m, pairs.trait, PROMPTS, replies, Condition("steered", vector, 1.0, "generated"))[
            ["logprob", "drift"]
        ]
        for m in both
    )
    assert (expected - found).abs().to_numpy().max() < 1e-5
    assert (found.drift > 0.01).all()


# ---- cache, padding, positions


@pytest.mark.parametrize("family", ["gpt2", "gemma-2", "mistral", "granite"])
@pytest.mark.parametrize("point", ["resid_post", "z", "attn_out"])
def test_cached_and_padded_equals_uncached_and_alone(
    bridges: Callable[[str], TransformerBridge], family: str, point: str
) -> None:
    """Against stock hooks on one whole unpadded row, where columns are positions."""
    model = bridges(family)
    locus = Locus(hook_name(point, 1), (-3, -1), 2 if point == "z" else None)
    vector = noise(model, locus, 4.0)
    ids = [list(render(model.tokenizer, p).ids) for p in PROMPTS]
    end = max(map(len, ids))
    assert end > 40
    tokens, mask = torch.full((len(ids), end), 4), torch.zeros(len(ids), end, dtype=torch.bool)
    for row, x in enumerate(ids):
        tokens[row, end - len(x) :], mask[row, end - len(x) :] = torch.tensor(x), True
    reply = torch.randint(5, 600, (len(ids), 12), generator=torch.Generator().manual_seed(1))
    for positions in ("generated", "locus", (2, 5)):
        batch = begin(model, vector.hooks(1.0, positions), mask, end, end + 12)
        cached = torch.stack([batch(tokens), *(batch(reply[:, [k]]) for k in range(12))], 1)
        for row, x in enumerate(ids):
            whole = torch.tensor([x + reply[row].tolist()])
            hooks = vector.hooks(1.0, positions, prompt_length=len(x))
            alone = model.run_with_hooks(whole, fwd_hooks=hooks)[0, len(x) - 1 :]
            torch.testing.assert_close(cached[row], alone, rtol=0, atol=1e-4)
        unsteered = model(torch.tensor([ids[0] + reply[0].tolist()]))[0, len(ids[0]) - 1 :]
        assert float((cached[0] - unsteered).abs().max()) > 1e-2


def test_a_rows_text_does_not_depend_on_its_batch(
    bridges: Callable[[str], TransformerBridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows end at different steps, and those that are left go on without them."""
    model = bridges("mistral")
    vector = noise(model, Locus("blocks.1.hook_resid_post"), 2.0)
    prompts = sorted([*PROMPTS, "Yes.", "I am so sorry."], key=lambda p: len(render(model.tokenizer, p).ids))
    strengths = (2.0, 0.0, -2.0, 1.0, 3.0)
    hooks = row_hooks([(vector.scaled(x), vector.locus, "generated") if x else None for x in strengths])
    kept: list[int] = []
    keep = StockPass.keep
    monkeypatch.setattr(StockPass, "keep", lambda self, rows: kept.append(len(rows)) or keep(self, rows))
    options: dict[str, Any] = {"max_new_tokens": 16, "seed": 3, "stop": ("a", "e")}
    together = star.generate(model, prompts, hooks, progress=False, **options)
    assert kept
    assert len({len(r.tokens) for r in together}) > 2
    assert together == list(star.stream(model, prompts, hooks, **options))[-1]
    for prompt, x, reply in zip(prompts, strengths, together, strict=True):
        own = vector.hooks(x, "generated") if x else ()
        assert star.generate(model, [prompt], own, progress=False, **options) == [reply]


def test_threads_take_turns_at_a_bridge(bridges: Callable[[str], TransformerBridge]) -> None:
    model = bridges("mistral")
    vector = noise(model, Locus("blocks.1.hook_resid_post"), 2.0)
    hooks = {p: vector.hooks(x, "generated") for p, x in zip(PROMPTS, (2.0, -2.0), strict=False)}
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0, "progress": False}
    alone = [star.sample(model, [p], h, **options) for p, h in hooks.items()]
    with ThreadPoolExecutor(4) as pool:
        written = [pool.submit(star.sample, model, [p], h, **options) for p, h in list(hooks.items()) * 4]
    assert [w.result() for w in written] == alone * 4


def test_what_is_written_between_attention_and_mlp_reaches_the_residual_stream(
    bridges: Callable[[str], TransformerBridge],
) -> None:
    """A bridge's own hook_resid_mid is the input of the MLP's norm. What is added there is added to the sum."""
    model = bridges("granite")
    texts = [
        star.sample(
            model,
            PROMPTS,
            noise(model, Locus(f"blocks.1.{p}"), 8.0).hooks(1.0, "all"),
            max_new_tokens=8,
            temperature=0.0,
            progress=False,
        )
        for p in ("hook_resid_mid", "hook_attn_out")
    ]
    assert texts[0] == texts[1] != star.sample(model, PROMPTS, (), max_new_tokens=8, temperature=0.0, progress=False)


@pytest.mark.parametrize("point", ["resid_mid", "attn_out", "resid_post"])
def test_no_hook_is_left_after_an_error(bridges: Callable[[str], TransformerBridge], point: str) -> None:
    model = bridges("granite")

    def fail(activation: Tensor, hook: object) -> None:
        raise RuntimeError("planted")

    with model.hooks(fwd_hooks=[("blocks.2.mlp.hook_in", fail)]):
        for call in (
            lambda: star.generate(
                model, PROMPTS, noise(model, Locus(hook_name(point, 1)), 1.0).hooks(), progress=False
            ),
            lambda: star.attribute(model, unequal_pairs(), hook_points=[point], progress=False),
            lambda: star.attribute(model, unequal_pairs(), mode="layer_by_layer", progress=False),
            lambda: star.extract_vector(model, few("politeness", 2), Locus(hook_name(point, 2))),
        ):
            with pytest.raises(RuntimeError, match="planted"):
                call()
        assert by_hand.hooks_left(model) == ["blocks.2.mlp.hook_in"]  # the caller's own
    assert by_hand.hooks_left(model) == []
    assert not any(block._forward_pre_hooks for block in model.blocks)
    assert model.context_level == 0


# ---- an architecture that normalises what attention and MLP write, which no HookedTransformer does


def test_olmo_2_from_attribution_to_text(write: Callable[..., Path], tokenizer: PreTrainedTokenizerFast) -> None:
    folder = write("olmo-2")
    if HAS_HOOKED_TRANSFORMER:
        with pytest.raises(StarError, match=r"cannot hold .* Olmo2ForCausalLM .*: load it with backend='bridge'\.$"):
            star.load_model(folder, device="cpu")
    model, truth = star.load_model(folder, device="cpu", backend="bridge"), OnHuggingFace(folder, tokenizer)

    attr = star.attribute(model, unequal_pairs(), progress=False)
    for name, wanted in by_hand.attribution(truth, unequal_pairs(), attr.window).items():  # type: ignore[arg-type]
        torch.testing.assert_close(
            getattr(attr, name).double(), wanted.double(), **CLOSE, msg=lambda m, name=name: f"{name}: {m}"
        )
    checked = verify(model, unequal_pairs(), attr, top_k=4, sample=4, progress=False)
    assert checked.exact.isfinite().all()

    vector = star.extract_vector(model, unequal_pairs(), attr.top_locus())
    for place in ("hook_resid_post", "hook_attn_out", "attn.hook_z"):
        steering = noise(model, Locus(f"blocks.1.{place}", (-1,), 1 if place == "attn.hook_z" else None), 8.0)
        if place == "hook_resid_post":
            steering = replace(vector, vector=20 * vector.vector.mean(0, keepdim=True), locus=steering.locus)
        found = star.generate(
            model, PROMPTS, steering.hooks(1.0, "generated"), max_new_tokens=6, temperature=0, progress=False
        )
        for prompt, reply in zip(PROMPTS, found, strict=True):
            ids = list(render(model.tokenizer, prompt).ids)
            hooks = steering.hooks(1.0, "generated", prompt_length=len(ids))
            assert list(reply.tokens) == truth.greedy(ids, hooks, len(reply.tokens))


@pytest.mark.parametrize("family", ["olmo", "gemma-3", "smollm-3", "mixtral"])
def test_others_write_what_huggingface_writes(write: Callable[..., Path], family: str) -> None:
    folder = write(family)
    model = star.load_model(folder, device="cpu", backend="bridge")
    truth = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    found = star.generate(model, PROMPTS, max_new_tokens=6, temperature=0, progress=False)
    for prompt, reply in zip(PROMPTS, found, strict=True):
        ids = list(render(model.tokenizer, prompt).ids)
        for token in reply.tokens:
            assert token == int(truth(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
    pairs = few("politeness", 2)
    attr = star.attribute(model, pairs, progress=False)
    # What one layer hands to the next has one score.
    after, before = (attr.component(c) for c in ("resid_post", "resid_pre"))
    torch.testing.assert_close(after[:, :-1], before[:, 1:], **CLOSE)
    assert star.extract_vector(model, pairs, Locus("blocks.1.hook_resid_post")).vector.any()


@pytest.mark.parametrize("family", ["granite", "olmo-2", "gemma-3", "smollm-3", "mixtral"])
def test_layer_by_layer_equals_the_whole_pass(bridges: Callable[[str], TransformerBridge], family: str) -> None:
    """Layers that differ in mask or positions, experts, and replies of one token, of which nothing is read."""
    model = bridges(family)
    for pairs in (unequal_pairs(), equal_length_pair()):
        whole, apart = (
            star.attribute(model, pairs, mode=mode, progress=False) for mode in ("two_passes", "layer_by_layer")
        )
        assert float(whole.scores.nan_to_num().abs().max()) > 1e-2
        for name in TENSORS:
            found, wanted = getattr(apart, name), getattr(whole, name)
            torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-5, atol=2e-6)
    assert by_hand.hooks_left(model) == []


# ---- the rest of the package


@pytest.mark.hooked
def test_a_whole_run_equals_that_of_the_other_backend(write: Callable[..., Path], tmp_path: Path) -> None:
    folder, pairs, prompts = write("llama"), few("emotional_support", 3), ["I failed my exam.", "My dog is ill."]
    found = []
    talk = noise(star.load_model(folder, device="cpu"), Locus("blocks.1.hook_resid_post"), 4.0)
    for backend in ("hooked", "bridge"):
        model = star.load_model(folder, device="cpu", backend=backend)
        result = star.run(
            model, pairs, prompts, tmp_path / backend, strength=2.0, temperature=0, max_new_tokens=6, progress=False
        )
        chat = star.converse(model, ["Hi!", "I am sad."], Condition("steered", talk), max_new_tokens=6, temperature=0)
        found.append((result, chat))
    (expected, expected_chat), (result, chat) = found
    assert result.vector.locus == expected.vector.locus
    assert list(result.samples.text) == list(expected.samples.text)
    assert list(chat.reply) == list(expected_chat.reply)
    for column in ("logprob", "drift"):
        assert (result.samples[column] - expected.samples[column]).abs().max() < 1e-4
    assert (result.dose.drift - expected.dose.drift).abs().max() < 1e-4
    assert (tmp_path / "bridge" / "report.html").stat().st_size > 10_000
    loaded = SteeringVector.load(tmp_path / "hooked" / "vector.safetensors", model)  # raises where the model is another
    assert torch.equal(loaded.vector, expected.vector.vector)


def test_on_the_command_line(write: Callable[..., Path], tmp_path: Path) -> None:
    folder, out = str(write("granite")), tmp_path / "map.safetensors"
    common = ["--model", folder, "--device", "cpu"]
    written = runner.invoke(
        app, ["generate", *common, "--backend", "bridge", "--prompt", "Hi", "--max-new-tokens", "3"]
    )
    assert written.exit_code == 0, written.output
    cut = [*common, "--backend", "bridge", "--first-n-layers", "2", "--trait", "politeness", "--out", str(out)]
    assert runner.invoke(app, ["attribute", *cut]).exit_code == 0
    assert star.AttributionMap.load(out).n_layers == 2
    for arguments, message in (
        (["--backend", "brigde"], "Unknown backend 'brigde'. Did you mean 'bridge'?"),
        ([], "load it with backend='bridge'")
        if HAS_HOOKED_TRANSFORMER
        else (["--backend", "hooked"], "or use backend='bridge'."),
        (["--backend", "bridge", "--first-n-layers", "9"], "first_n_layers is 9: use 1 to 3."),
    ):
        refused = runner.invoke(app, ["generate", *common, *arguments, "--prompt", "Hi"])
        assert refused.exit_code == 2
        assert message in refused.stderr
        assert refused.stderr.strip().splitlines()[-1].startswith("star-tl: ")  # after transformers' progress bar


def refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(StarError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_architectures_without_what_is_needed_are_refused(write: Callable[..., Path]) -> None:
    def load(family: str) -> Callable[[], Any]:
        return lambda: star.load_model(write(family), device="cpu", backend="bridge")

    refused("has no num_attention_heads: use a checkpoint of attention layers", load("mamba"))
    refused(r"OPTForCausalLM .* \(its hook points near .* do not fire in order\): use", load("opt"))
    refused(r"does not know the architecture PersimmonForCausalLM: .* Did you mean", load("persimmon"))


def test_damaged_and_other_weights_are_refused(write: Callable[..., Path]) -> None:
    folder = write("granite")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(r"lacks model\.layers\.1\.mlp\.down_proj\.weight: download", lambda: bridge_of(folder))
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused("cannot be read .* as safetensors", lambda: bridge_of(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    refused("is quantized", lambda: bridge_of(folder))


def bridge_of(folder: Path) -> TransformerBridge:
    return star.load_model(folder, device="cpu", backend="bridge")


def test_a_bridge_that_computes_something_else_is_refused(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("llama")
    from transformer_lens.model_bridge.generalized_components import PositionEmbeddingsAttentionBridge as Attention

    plain = Attention._update_kv_cache
    monkeypatch.setattr(
        Attention, "_update_kv_cache", lambda self, k, v, **more: (plain(self, k, v, **more)[0] * 1.1, v)
    )
    refused("its logits are not those of HuggingFace", lambda: bridge_of(folder))
    monkeypatch.setattr(Attention, "_update_kv_cache", lambda self, k, v, **more: (k, v))  # forgets what was read
    refused("with padding and a cache it computes something else", lambda: bridge_of(folder))
