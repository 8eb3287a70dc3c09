"""A Llama spread over several devices gives what it gives on one, and nothing of it lies or mixes where it should not.

Without GPUs its devices are the stand-ins of :mod:`devices`, which refuse every operator over two devices as CUDA does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import unequal_pairs
from devices import StandIns
from typer.testing import CliRunner

import star_tl as star
from star_tl import doctor
from star_tl.attribution.exact import exact_effects
from star_tl.attribution.relp import conservation
from star_tl.cli import app
from star_tl.data.chat import render
from star_tl.errors import StarError
from star_tl.evaluation.conversation import converse
from star_tl.generation import sampling
from star_tl.locus import Locus
from star_tl.models import load as loading
from star_tl.models import memory as memories
from star_tl.models import size as sizes
from star_tl.models.config import read_config
from star_tl.models.fast.forward import llama_forward
from star_tl.models.lens import AbstractAttention, HookedTransformer
from star_tl.models.load import fingerprint
from star_tl.models.size import check_memory, llama_size
from star_tl.steering.condition import Condition
from star_tl.steering.hooks import row_hooks
from star_tl.vectors import METHODS

LAYERS = 5
THREE = "lazy:0,lazy:1,lazy:2"
PLACES = ("lazy:0", "lazy:0", "lazy:1", "lazy:1", "lazy:2")
PROMPTS = ("I failed my exam.", "My sister lost her job and I do not know what to say to her.", "Hello")
POINTS = ("hook_q", "hook_rot_k", "hook_attn_scores", "hook_pattern", "hook_z")
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(write_llama: Write) -> Path:
    return write_llama(num_hidden_layers=LAYERS, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def whole(folder: Path) -> HookedTransformer:
    return star.load_model(folder, dtype="float64", device="cpu")


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    monkeypatch.setattr(loading, "_usable", lambda device: device)
    with StandIns() as stand_ins:
        yield stand_ins


@pytest.fixture
def spread(folder: Path, devices: StandIns) -> HookedTransformer:
    return star.load_model(folder, dtype="float64", device=THREE)


def few() -> star.Pairs:
    pairs = unequal_pairs()
    return replace(pairs, pairs=pairs.pairs[:4])


def steering(layer: int, head: int | None = None) -> star.SteeringVector:
    generator = torch.Generator().manual_seed(layer)
    where = f"blocks.{layer}.hook_resid_post" if head is None else f"blocks.{layer}.attn.hook_z"
    vector = torch.randn(1, 32 if head is None else 8, generator=generator, dtype=torch.float64)
    return star.SteeringVector(vector, Locus(where, (-1,), head), "none", "random", 1.0, 1, "", "", "")


def test_stand_ins_mix_no_more_than_gpus_do(devices: StandIns) -> None:
    """The truth of all that follows."""
    a = torch.arange(6.0, device="lazy:0").requires_grad_()
    b = torch.arange(6.0, device="lazy:1")
    for mixed in (
        lambda: a + b,
        lambda: torch.cat([a, b]),
        lambda: a[b.long()],
        lambda: b.index_put_((torch.tensor([1]),), a.detach()[:1]),
        lambda: a + torch.ones(6),
    ):
        with pytest.raises(RuntimeError):
            mixed()
    (gradient,) = torch.autograd.grad((a.to(b.device) * b).sum() * torch.tensor(2.0), a)
    assert str(gradient.device) == "lazy:0"
    assert gradient.tolist() == [0, 2, 4, 6, 8, 10]


def test_every_layer_lies_on_its_device_and_was_never_on_another(
    folder: Path, devices: StandIns, whole: HookedTransformer
) -> None:
    model = star.load_model(folder, dtype="float64", device=THREE)
    made, held = devices.made.copy(), Counter[str]()
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        part, *rest = name.split(".")
        place = PLACES[int(rest[0])] if part == "blocks" else {"embed": "lazy:0"}.get(part, "lazy:2")
        assert str(tensor.device) == place, name
    for parameter in model.parameters():
        held[str(parameter.device)] += parameter.nbytes
    # Beside the parameters only masks of no size and rotary tables, which come from the processor.
    assert made == held
    assert llama_forward(model) is None
    assert fingerprint(model) == fingerprint(whole)


def test_what_each_device_holds_is_known_before(folder: Path, devices: StandIns) -> None:
    model = star.load_model(folder, device=THREE)
    parts = llama_size(read_config(folder)).spread(3)
    assert [p.layers for p in parts] == [2, 2, 1]
    for place, part in zip(THREE.split(","), parts, strict=True):
        weights = [
            p for n, p in model.named_parameters() if str(p.device) == place and ".b_" not in n and "_b_" not in n
        ]
        assert 0 <= part.parameters - sum(w.numel() for w in weights) <= 32  # the last norm is counted twice


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_one_device(write_llama: Write, devices: StandIns, tied: bool) -> None:
    folder = write_llama(num_hidden_layers=LAYERS, tie_word_embeddings=tied)
    model, one = (star.load_model(folder, dtype="float64", device=d) for d in (THREE, "cpu"))
    tokens = torch.randint(5, 500, (2, 11))
    assert torch.equal(model(tokens).cpu(), one(tokens))


def test_attention_stays_where_its_layer_is(spread: HookedTransformer) -> None:
    """HookedTransformer alone would compute all of it on the first device, and keep it there for the gradient."""
    found: list[str] = []
    points = [
        (f"blocks.{i}.attn.{p}", lambda x, hook: found.append(str(x.device))) for i in range(LAYERS) for p in POINTS
    ]
    tokens = torch.randint(5, 500, (2, 7))
    spread.run_with_hooks(tokens, fwd_hooks=points, attention_mask=torch.ones_like(tokens))
    assert found == [place for place in PLACES for _ in POINTS]


@pytest.mark.parametrize("layer", [0, 4])
def test_sampled_texts_are_those_of_one_device(spread: HookedTransformer, whole: HookedTransformer, layer: int) -> None:
    one, other = steering(layer), steering(LAYERS - 1 - layer, head=1)
    arms: dict[str, Any] = {
        "plain": [],
        "everywhere": one.hooks(2.0, "all"),
        "head": other.hooks(2.0, "generated"),
        "by row": row_hooks([None, (one.vector, one.locus, "all"), (other.vector, other.locus, "last_prompt")]),
    }
    options: dict[str, Any] = {"max_new_tokens": 8, "repetition_penalty": 1.2, "log_probs": True, "progress": False}
    for arm, hooks in arms.items():
        found, expected = (star.generate(m, PROMPTS, hooks=hooks, **options) for m in (spread, whole))
        assert [r.tokens for r in found] == [r.tokens for r in expected], arm
        for a, b in zip(found, expected, strict=True):
            assert a.log_probs == pytest.approx(b.log_probs, abs=1e-9)


def test_finished_rows_leave_the_batch(spread: HookedTransformer, whole: HookedTransformer) -> None:
    ends = star.generate(whole, PROMPTS, max_new_tokens=12, progress=False)
    stop = [ends[0].text[:3], ends[1].text[:3]]
    found, expected = (
        star.generate(m, PROMPTS, steering(3).hooks(), max_new_tokens=12, stop=stop, progress=False)
        for m in (spread, whole)
    )
    assert found == expected
    assert sum(r.stopped for r in found) >= 1


def test_a_batch_is_cut_to_the_device_with_least_room(
    spread: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = 14 * 2 * LAYERS * 2 * 8 * 8  # bytes of 14 columns' keys and values: layers, heads, width, float64
    row += sampling.PICKING * spread.cfg.d_vocab
    room = {"lazy:0": 9e9, "lazy:1": 7.1 / 3 * row / sampling.CACHE_SHARE, "lazy:2": 9e9}
    monkeypatch.setattr(memories, "free_memory", room.__getitem__)
    assert sampling._room(spread, [(5,) * 10] * 16, range(16), sampling.Sampling(max_new_tokens=4)) == 7


@pytest.mark.parametrize(
    "how",
    [
        {"mode": "one_batch"},
        {"mode": "two_passes"},
        {"mode": "layer_by_layer"},
        {"method": "relp"},
        {"method": "relp", "mode": "layer_by_layer"},
        {"method": "ig"},
    ],
    ids=lambda how: " ".join(how.values()),
)
def test_attribution_is_that_of_one_device(
    spread: HookedTransformer, whole: HookedTransformer, how: dict[str, Any]
) -> None:
    found, expected = (star.attribute(m, few(), progress=False, **how) for m in (spread, whole))
    forms = ("scores", "head_scores", "steering", "head_steering", "span_steering", "head_span_steering")
    forms += ("gradients", "differences", "position_effects")
    for name in (*forms, "metric_clean", "metric_corrupted"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.device.type == "cpu"
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    assert float(expected.scores.abs().max()) > 1e-2


@pytest.mark.parametrize("replies", [("I am so sorry.", "OK then."), ("N", "Y")], ids=["several tokens", "one token"])
def test_exact_patching_is_that_of_one_device(
    spread: HookedTransformer, whole: HookedTransformer, replies: tuple[str, str]
) -> None:
    pairs = unequal_pairs()
    pairs = replace(pairs, pairs=(replace(pairs.pairs[0], positive=replies[0], negative=replies[1]),))
    loci = [Locus(f"blocks.{layer}.hook_mlp_out", (-1,)) for layer in range(LAYERS)]
    loci += [Locus(f"blocks.{layer}.attn.hook_z", (-2,), 1) for layer in range(LAYERS)]
    found, expected = (exact_effects(m, pairs, loci, progress=False) for m in (spread, whole))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for mode in ("two_passes", "layer_by_layer"):
        scores = [star.attribute(m, pairs, mode=mode, progress=False).scores for m in (spread, whole)]
        torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-6)


def test_relevance_is_conserved_over_devices(spread: HookedTransformer) -> None:
    tokens = torch.randint(5, 500, (2, 9))
    answer = spread(tokens)[:, -1].argmax(-1).cpu()
    torch.testing.assert_close(conservation(spread, tokens, answer), torch.ones(LAYERS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_vectors_are_those_of_one_device(spread: HookedTransformer, whole: HookedTransformer, method: str) -> None:
    for locus in (Locus("blocks.1.hook_resid_post", (-2, -1)), Locus("blocks.4.attn.hook_z", (-1,), 2)):
        found, expected = (star.extract_vector(m, few(), locus, method) for m in (spread, whole))
        torch.testing.assert_close(found.vector, expected.vector)
        found.check(spread)


def test_scores_and_conversations_are_those_of_one_device(spread: HookedTransformer, whole: HookedTransformer) -> None:
    vector = steering(3)
    chats = [[{"role": "user", "content": p}] for p in PROMPTS]
    replies = star.generate(whole, chats, vector.hooks(), max_new_tokens=8, progress=False)
    tables = [star.score(m, few().trait, chats, replies, Condition("steered", vector)) for m in (spread, whole)]
    numbers = ["logprob", "drift", "drift_max"]
    torch.testing.assert_close(*(torch.tensor(t[numbers].to_numpy()) for t in tables))
    talks = [
        converse(m, PROMPTS, Condition("steered", vector, positions="generated"), max_new_tokens=6)
        for m in (spread, whole)
    ]
    assert list(talks[0].reply) == list(talks[1].reply)
    assert talks[0].drift.to_numpy() == pytest.approx(talks[1].drift.to_numpy(), abs=1e-6)


# --- what cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpu,cpu", r"cannot be spread over 'cpu,cpu': name GPUs that follow one another, as in 'cuda:0,cuda:1'"),
        ("cpu,meta", "name GPUs that follow one another"),
        ("cpu, abacus", "Device 'abacus' cannot be used here: use 'cpu'"),
        ("cpu,", "Device '' cannot be used here"),
    ],
)
def test_devices_that_cannot_be_are_refused_in_one_line(tiny_folder: Path, device: str, message: str) -> None:
    with pytest.raises(StarError, match=message) as caught:
        star.load_model(tiny_folder, device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda:0,cuda:0", "cuda:1,cuda:0", "cuda:0,cuda:2", "cuda:0,cpu", "cuda,cuda:1"])
def test_gpus_twice_or_out_of_order_are_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # as if they all were there
    with pytest.raises(StarError, match="CUDA_VISIBLE_DEVICES"):
        loading._usable(device)
    assert loading._usable("cuda:1, cuda:2") == "cuda:1,cuda:2"


def test_more_devices_than_layers_are_refused(tiny_folder: Path, devices: StandIns) -> None:
    with pytest.raises(StarError, match="are more devices than the model's 3 layers: name 3 at most"):
        star.load_model(tiny_folder, device="lazy:0,lazy:1,lazy:2,lazy:3")
    with pytest.raises(StarError, match="2 layers: name 2 at most"):
        star.load_model(tiny_folder, device=THREE, first_n_layers=2)


def test_a_bridge_is_not_spread(tiny_folder: Path, devices: StandIns) -> None:
    with pytest.raises(StarError, match="Only Llamas with backend='hooked' can be spread"):
        star.load_model(tiny_folder, device=THREE, backend="bridge")


# --- what fits --------------------------------------------------------------------------------

GB = 1e9
SEVENTY = llama_size(sizes.SHAPES["meta-llama/Llama-3.3-70B-Instruct"])
EIGHT = llama_size(sizes.SHAPES["meta-llama/Llama-3.1-8B-Instruct"])


def cards(monkeypatch: pytest.MonkeyPatch, *free: float) -> None:
    """A machine with so many GB free on each GPU, and 30 in its memory."""
    memory = {"cuda": free[0], "cpu": 30.0} | {f"cuda:{i}": gb for i, gb in enumerate(free)}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    for module in (sizes, doctor):
        monkeypatch.setattr(module, "free_memory", lambda device: int(memory[device] * GB))


def test_the_largest_share_must_fit_not_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 8B in bfloat16 is 8.03 GB, and so is each of its two equal halves."""
    cards(monkeypatch, 8.1, 8.1)
    check_memory("8B", EIGHT, torch.bfloat16, "cuda:0,cuda:1")
    cards(monkeypatch, 8.1, 7.9)
    with pytest.raises(StarError, match=r"needs 16\.1 GB .* and cuda:0,cuda:1 has 8\.1 and 7\.9 GB free: use first_n"):
        check_memory("8B", EIGHT, torch.bfloat16, "cuda:0,cuda:1")
    cards(monkeypatch, 30.0, 7.9)
    with pytest.raises(StarError, match=r"use first_n_layers=31, device='cuda:0', "):
        check_memory("8B", EIGHT, torch.bfloat16, "cuda:0,cuda:1")


def test_one_card_too_small_points_to_the_fewest_that_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, 80.0, 80.0, 80.0)
    with pytest.raises(StarError, match=r"and cuda has 80\.0 GB free: use first_n_layers=44, device='cuda:0,cuda:1', "):
        check_memory("70B", SEVENTY, torch.bfloat16, "cuda")
    other = replace(SEVENTY, outside_when_spread=0)  # of another architecture
    with pytest.raises(StarError, match=r"use first_n_layers=44, a larger device"):
        check_memory("other", other, torch.bfloat16, "cuda")


def test_the_doctor_counts_the_cards_that_a_model_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_speed", lambda seconds: {})
    cards(monkeypatch, *[80.0] * 4)
    found = {fit.model: fit for fit in doctor.examine().fits}
    large = found["meta-llama/Llama-3.3-70B-Instruct"]
    assert large.devices == {"bfloat16": 2, "float32": 4}
    # Of two: 40 layers of 855.6 M and one table of 128,256 by 8,192; 1,024 tokens of 40 layers' keys and values.
    room = 80e9 - 2 * (40 * 855_654_400 + 128_256 * 8192)
    assert large.rows["bfloat16"] == int(room // (40 * 2 * 8 * 128 * 2 * 1024))
    assert found["meta-llama/Llama-3.1-8B-Instruct"].devices == {"bfloat16": 1, "float32": 1}
    printed = CliRunner().invoke(app, ["doctor"]).output
    assert "rows over 2 GPUs" in printed
    assert "80.0 GB + 80.0 GB" in printed


# --- on GPUs ----------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_what_one_gives(folder: Path) -> None:
    two, one = (star.load_model(folder, dtype="float64", device=d) for d in ("cuda:0,cuda:1", "cuda:0"))
    assert {p.device.index for p in two.parameters()} == {0, 1}
    ids = torch.tensor([render(one.tokenizer, PROMPTS[0]).ids])
    torch.testing.assert_close(two(ids).cpu(), one(ids).cpu())
    for mode in ("two_passes", "layer_by_layer"):
        maps = [star.attribute(m, few(), mode=mode, progress=False) for m in (two, one)]
        torch.testing.assert_close(maps[0].scores, maps[1].scores, rtol=1e-5, atol=1e-6)
    hooks = steering(4).hooks(2.0, "all")
    texts = [star.sample(m, PROMPTS, hooks=hooks, max_new_tokens=12, progress=False) for m in (two, one)]
    assert texts[0] == texts[1]


def test_vectors_that_lie_on_a_device_are_taken_to_the_processor(devices: StandIns, whole: HookedTransformer) -> None:
    there = torch.ones(1, 32, device="lazy:0").requires_grad_()
    locus = star.Locus("blocks.1.hook_resid_post")
    vector = star.SteeringVector(there, locus, "t", "x", 1.0, 1, "m", "", "")
    assert str(vector.vector.device) == "cpu"
    assert not vector.vector.requires_grad
    assert vector.random_like().norm == pytest.approx(vector.norm)
    assert (vector + replace(vector, vector=torch.ones(1, 32))).norm == pytest.approx(2 * vector.norm)
    attr = star.attribute(whole, unequal_pairs(), progress=False)
    torch.testing.assert_close(attr.effect(there[0]), attr.effect(torch.ones(32)))
    torch.testing.assert_close(attr.cost(there[0]), attr.cost(torch.ones(32)))
    chosen = [attr.choose_layer(vector=v, resamples=100) for v in (there, torch.ones(32))]
    assert chosen[0].layer == chosen[1].layer
    assert chosen[0].p_value == chosen[1].p_value


@pytest.mark.parametrize(
    ("asked", "found"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cuda:2,cuda:3", "cuda:2,cuda:3"), ("cpu", "cpu")]
)
def test_the_current_gpu_is_named_by_its_number(monkeypatch, asked: str, found: str) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # as if it were there
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert loading._usable(asked) == found


def test_a_device_without_float64_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # as if it were there
    with pytest.raises(StarError, match=r"^Device 'mps' cannot be used here: use 'cpu'"):
        loading._usable("mps")


def test_weights_on_cards_are_looked_through_at_once(devices: StandIns) -> None:
    weights = {"fine": torch.ones(3), "nan": torch.tensor([1.0, torch.nan]), "none": torch.ones(0)}
    weights |= {"large": torch.full((4,), 3e38), "infinite": torch.tensor([[torch.inf]])}
    there = {name: w.to(f"lazy:{i % 2}") for i, (name, w) in enumerate(weights.items())}
    assert loading._finite_on_cards(there) == {"fine", "none"}
    assert loading._finite(weights["large"]), "what overflows as a sum is looked at again"
    assert loading._finite_on_cards({}) == set()


def test_layers_share_one_table_of_angles_and_nothing_of_it_lasts(folder: Path, monkeypatch) -> None:
    made: list[int] = []
    plain = AbstractAttention.calculate_sin_cos_rotary

    def counted(own: Any, *args: Any, **named: Any) -> Any:
        made.append(1)
        return plain(own, *args, **named)

    monkeypatch.setattr(AbstractAttention, "calculate_sin_cos_rotary", counted)
    model = star.load_model(folder)
    assert len(made) == 2, "that of no numbers, and the one with them"
    assert AbstractAttention.calculate_sin_cos_rotary is counted
    held = [block.attn.rotary_cos for block in model.blocks]
    expected = plain(model.blocks[0].attn, model.cfg.rotary_dim, len(held[0]), base=model.cfg.rotary_base)[1]
    for table in held:
        torch.testing.assert_close(table, expected)
