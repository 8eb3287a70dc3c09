"""What is recorded waits for nothing and goes on as Python would: steps and passes as graphs, on the processor."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from by_hand import unequal_pairs
from capture import Captured, Refused, graphs_on_the_processor
from torch.nn.attention import SDPBackend

import star_tl as star
from star_tl.attribution import atp
from star_tl.attribution.repeated import Repeated
from star_tl.generation.decoding import begin
from star_tl.generation.sampling import FEW_LEFT, in_batches, render_prompts
from star_tl.models.fast import attention, recording
from star_tl.models.fast.decode import LlamaPass, attend
from star_tl.models.fast.recording import Recording
from star_tl.models.product import in_tf32
from star_tl.models.transformers_folder import difference, differences
from star_tl.steering.hooks import injection_hooks, row_hooks

PROMPTS = ("My sister lost her job.", "no", "Would you sell the bicycle?", "Who is it?")
MIDDLE = star.Locus("blocks.1.hook_resid_post")


@pytest.fixture
def recordings(monkeypatch) -> list[Captured]:
    """Everything is recorded that would be on a card; the recordings."""
    monkeypatch.setattr(atp, "WORTH", 3)
    return graphs_on_the_processor(monkeypatch)


@pytest.fixture(autouse=True)
def only_said_where_it_is_asked_for() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(A decode step|Attribution's passes)")
        yield


def vector(locus: star.Locus = MIDDLE) -> star.SteeringVector:
    width = 8 if locus.head is not None else 32
    drawn = torch.randn(len(locus.positions), width, generator=torch.Generator().manual_seed(3))
    return star.SteeringVector(drawn, locus, "t", "x", 1.0, 1, "m", "", "")


HOOKS: dict[str, Callable[[], Any]] = {
    "none": list,
    **{name: partial(vector().hooks, 2.0, name) for name in ("prompt", "last_prompt", "generated", "all")},
    "own positions": lambda: vector(star.Locus("blocks.1.hook_resid_post", (-2, -1))).hooks(2.0),
    "a head": lambda: vector(star.Locus("blocks.1.attn.hook_z", head=1)).hooks(2.0, "all"),
    "two": lambda: [*vector().hooks(2.0, "all"), *vector(star.Locus("blocks.2.hook_mlp_out")).hooks(-1.0, "generated")],
    "a removal": lambda: injection_hooks(torch.nn.functional.normalize(vector().vector), MIDDLE, "all", remove=True),
}


TOGETHER = (*PROMPTS[:1] * 3, *PROMPTS[1:2] * 2)  # what such rows share is read once, up to the prompts' last token


@pytest.mark.parametrize(
    ("dtype", "prompts"), [("float32", PROMPTS), ("float32", TOGETHER), ("bfloat16", PROMPTS)], ids=str
)
@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS.keys())
def test_a_step_that_is_recorded_writes_what_the_plain_one_writes(
    tiny_folder, monkeypatch, hooks: Callable[[], Any], dtype: str, prompts: tuple[str, ...]
) -> None:
    model = star.load_model(tiny_folder, dtype=dtype)
    write = partial(star.generate, model, prompts, max_new_tokens=7, temperature=0, progress=False)
    plain = write(hooks())
    recorded = graphs_on_the_processor(monkeypatch)
    same = [a.tokens == b.tokens for a, b in zip(write(hooks()), plain, strict=True)]
    assert len(recorded) >= 1
    assert all(same) or (dtype == "bfloat16" and sum(same) >= 3)  # 16 bits round otherwise under a mask


def test_rows_that_are_steered_each_in_their_own_way_are_recorded_too(tiny, recordings) -> None:
    ways = [(vector().vector, MIDDLE, "all"), None, (vector().vector, MIDDLE, "generated"), None]
    ids = render_prompts(tiny, PROMPTS, 6)
    options = star.Sampling(max_new_tokens=6, temperature=0)
    found = in_batches(tiny, ids, [0] * 4, lambda b: row_hooks([ways[i] for i in b]), options, False)
    together = {i: reply.tokens for rows, replies in found for i, reply in zip(rows, replies, strict=True)}
    assert recordings
    for i, way in enumerate(ways):
        hooks = row_hooks([way]) if way else []
        alone = star.generate(tiny, PROMPTS[i : i + 1], hooks, max_new_tokens=6, temperature=0, progress=False)
        assert together[i] == alone[0].tokens


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (lambda t: bool(t.any()), "reads a number"),
        (lambda t: t.tolist(), "reads a number"),
        (lambda t: t[t > 0], "depends on numbers"),
        (lambda t: t.nonzero(), "depends on numbers"),
        (lambda t: t + torch.tensor([1.0]), "made on the host"),
        (lambda t: t.cpu(), "reads a number"),
        (lambda t: t + torch.arange(2), "made on the host"),
    ],
)
def test_what_a_card_would_refuse_is_refused_here(work: Callable[[torch.Tensor], object], why: str) -> None:
    given = torch.ones(2)
    with pytest.raises(Refused, match=why), Captured():
        work(given)


def test_what_python_does_beside_the_operators_is_not_done_again() -> None:
    counted: list[int] = []
    given = torch.zeros(2)
    with Captured() as graph:
        counted.append(1)
        made = (given + len(counted)).exp()
    given += 1
    graph.replay()
    torch.testing.assert_close(made, torch.full((2,), 2.0).exp())
    assert counted == [1]


def apart(one: star.AttributionMap, other: star.AttributionMap) -> float:
    """The largest difference in a map's tensors, as a share of the largest number of its kind."""
    tensors = {f.name for f in dataclasses.fields(one) if isinstance(getattr(one, f.name), torch.Tensor)}
    assert {"scores", "head_steering", "position_effects", "drift_gradients"} <= tensors
    tensors -= {"drift_gradients"}  # kept in bfloat16, whose last digit may differ
    pairs = [(getattr(one, name).nan_to_num(), getattr(other, name).nan_to_num()) for name in tensors]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs if b.any())


def attributed(model: Any, pairs: star.Pairs, **options: Any) -> star.AttributionMap:
    return star.attribute(model, pairs, batch_size=1, progress=False, **options)


@pytest.mark.parametrize("points", [None, ("z", "resid_post"), ("mlp_out",)])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_passes_that_are_recorded_give_the_same_map(write_llama, kv_heads: int, points: Any, recordings) -> None:
    model = star.load_model(write_llama(num_key_value_heads=kv_heads, attention_bias=True))
    pairs = unequal_pairs()
    whole = star.attribute(model, pairs, hook_points=points, progress=False)
    assert not recordings, "one batch repeats nothing"
    found = attributed(model, pairs, hook_points=points)
    assert len(recordings) == 1
    assert apart(found, whole) < 1e-5
    if whole.prices_layers:
        drift = found.drift_gradients.float() - whole.drift_gradients.float()
        assert drift.abs().max() <= 0.01 * whole.drift_gradients.float().abs().max()


def test_only_what_pays_and_asks_for_nothing_is_recorded(tiny, recordings, monkeypatch) -> None:
    def length(logits: torch.Tensor, replies: object) -> torch.Tensor:
        positive, negative = logits.float().log_softmax(-1).mean((1, 2)).chunk(2)
        return positive - negative

    pairs = unequal_pairs()
    attributed(tiny, pairs, metric=length)
    attributed(tiny, pairs, mode="two_passes")
    attributed(tiny, pairs, method="ig", steps=2)
    monkeypatch.setattr(atp, "WORTH", len(pairs.extraction.pairs) + 1)
    attributed(tiny, pairs)
    monkeypatch.setattr(atp, "WORTH", 3)
    monkeypatch.setattr(atp, "FEW_TOKENS", 30)
    attributed(tiny, pairs)
    assert not recordings


def test_a_last_batch_of_fewer_pairs_goes_its_own_way(tiny, recordings, monkeypatch) -> None:
    monkeypatch.setattr(atp, "WORTH", 2)
    pairs = unequal_pairs()
    assert len(pairs.extraction.pairs) % 2
    found = star.attribute(tiny, pairs, batch_size=2, progress=False)
    assert len(recordings) == 1
    assert apart(found, star.attribute(tiny, pairs, progress=False)) < 1e-5


def out_of_memory(made: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")


FAULTS: dict[str, Callable[[Any], Any]] = {
    "other numbers": lambda made: setattr(made, "metrics", made.metrics + 1) or made,
    "no numbers": lambda made: setattr(made, "drift", made.drift * torch.nan) or made,
    "no memory": out_of_memory,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_passes_that_differ_or_find_no_memory_are_given_up_with_one_warning(
    tiny, recordings, monkeypatch, fault: Callable[[Any], Any]
) -> None:
    again = Repeated._again
    monkeypatch.setattr(Repeated, "_again", lambda self: fault(again(self)))
    released: list[Recording[Any]] = []
    monkeypatch.setattr(Recording, "release", lambda self: released.append(self))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = attributed(tiny, unequal_pairs())
    (line,) = [str(w.message) for w in caught if "CUDA graph" in str(w.message)]
    assert line.endswith("going on without, slower.")
    assert "\n" not in line
    assert released
    assert apart(found, star.attribute(tiny, unequal_pairs(), progress=False)) < 1e-5


def test_a_call_that_is_interrupted_gives_its_graph_back(tiny, recordings, monkeypatch) -> None:
    released: list[Recording[Any]] = []
    monkeypatch.setattr(Recording, "release", lambda self: released.append(self))
    seen: list[int] = []
    look = atp.check_metrics

    def interrupted(*args: Any) -> None:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        look(*args)

    monkeypatch.setattr(atp, "check_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attributed(tiny, unequal_pairs())
    assert len(recordings) == len(released) == 1


def test_padding_to_a_common_width_changes_no_score(tiny) -> None:
    prepared = repeated_pairs(tiny)
    rows = [atp.pair_batch(tiny, prepared[:1], among=some) for some in (None, prepared)]
    assert rows[0].prompts.shape[1] < rows[1].prompts.shape[1]
    metrics = [atp.manual_backward(tiny, r, ("resid_post",), lambda *_: None) for r in rows]
    torch.testing.assert_close(metrics[0], metrics[1], rtol=1e-5, atol=1e-5)


def repeated_pairs(model: Any) -> Any:
    prepared = atp.prepare(model, unequal_pairs())
    return sorted(prepared, key=lambda p: max(len(p.corrupted), len(p.clean)))


class Card:
    """What of ``torch.cuda`` a recording asks for; ``seen`` says how it was asked, ``left`` which streams were set."""

    def __init__(self) -> None:
        self.alive = 0
        self.seen: list[tuple[bool, int]] = []
        self.left: list[object] = []
        self.ended: list[object] = []
        self.callers = Stream()
        self.capturing = False
        self.random = Random()


class Random:
    """A generator that a recording takes for its own."""

    state = "as it was"

    def clone_state(self) -> str:
        return self.state

    def graphsafe_set_state(self, state: str) -> None:
        self.state = state


class Stream:
    def wait_stream(self, other: object) -> None: ...


@pytest.fixture
def card(monkeypatch) -> Card:
    """A card that records nothing: the work runs as it stands."""
    made = Card()

    class Graph:
        def __init__(self) -> None:
            made.alive += 1

        def replay(self) -> None: ...

        def reset(self) -> None:
            made.alive -= 1

    @contextmanager
    def graph(own: Graph, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        assert stream is not made.callers
        made.seen.append((gc.isenabled(), made.alive))
        made.capturing, made.random.state = True, "the graph's"
        try:
            yield
        finally:
            made.capturing = False

    @contextmanager
    def on(_: object) -> Iterator[None]:
        yield

    for name, value in {
        "CUDAGraph": Graph,
        "graph": graph,
        "Stream": lambda device: Stream(),
        "stream": on,
        "device": on,
        "current_device": lambda: 0,
        "current_stream": lambda: made.callers,
        "set_stream": made.left.append,
        "graph_pool_handle": lambda: (0, 1),
        "default_generators": (made.random,),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda d, pool: made.ended.append(pool), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda d, pool: made.ended.append(pool), raising=False)
    monkeypatch.setattr(recording, "RECORDED_ON", ("cpu",))
    monkeypatch.setattr(recording, "_broken", [])
    recording._side_stream.cache_clear()
    return made


def test_nothing_is_collected_and_no_older_graph_lives_while_one_is_recorded(tiny, card) -> None:
    tokens = torch.randint(5, 600, (3, 9), generator=torch.Generator().manual_seed(1))
    run = begin(tiny, [], torch.ones(3, 9, dtype=torch.bool), 9, 13)
    run(tokens)
    run(tokens[:, :1])
    run.keep(torch.tensor([0, 1]))
    run(tokens[:2, :1])
    assert card.seen == [(False, 1), (False, 1)]  # the one that is being recorded
    assert gc.isenabled()


@pytest.mark.parametrize("error", [RuntimeError("not permitted\nwhile capturing"), torch.OutOfMemoryError("x")])
def test_a_recording_that_breaks_leaves_nothing_behind_and_the_work_is_done(card, error: RuntimeError) -> None:
    def work() -> torch.Tensor:
        if card.capturing:
            raise error
        return torch.ones(1)

    one = Recording[torch.Tensor](torch.device("cpu"))
    if isinstance(error, torch.OutOfMemoryError):  # half the batch may fit, and is recorded
        with pytest.raises(torch.OutOfMemoryError):
            one(work)
        assert recording.records(torch.device("cpu"))
    else:
        said = r"^A CUDA graph could not be recorded \(not permitted\): going on without any, slower\.$"
        with pytest.warns(UserWarning, match=said):
            assert one(work) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Recording[torch.Tensor](torch.device("cpu"))(work) == 1
        assert len(card.seen) == 1, "nothing is recorded any more"
    assert card.left == [card.callers]
    assert card.random.state == "as it was"
    assert card.ended == [(0, 1)] * 2
    assert gc.isenabled()


def test_an_error_of_the_work_itself_is_the_works(card) -> None:
    def work() -> torch.Tensor:
        raise star.StarError("The vector has width 3.")

    with pytest.raises(star.StarError, match="width 3"):
        Recording[torch.Tensor](torch.device("cpu"))(work)
    assert not card.seen


def test_what_is_asked_of_float32_products_is_known_however_it_was_said(monkeypatch) -> None:
    assert not in_tf32()
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert in_tf32()
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert not in_tf32()
        torch.backends.cuda.matmul.fp32_precision = before
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # another device's
        assert not in_tf32()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("high")
    try:
        assert in_tf32()
    finally:
        torch.set_float32_matmul_precision("highest")


def test_rows_that_have_ended_are_dropped_seldom_where_that_is_dear(demo, monkeypatch) -> None:
    prompts = [f"My sister lost job number {i}." for i in range(24)]
    write = partial(star.generate, demo, prompts, max_new_tokens=48, progress=False)
    plain, kept = write(), []
    keep = LlamaPass.keep
    monkeypatch.setattr(LlamaPass, "keep", lambda self, rows: kept.append(len(rows)) or keep(self, rows))
    write()
    cheap = kept.copy()
    kept.clear()
    recordings = graphs_on_the_processor(monkeypatch)
    dear = write()
    assert len(cheap) > 2
    assert len(kept) < len(cheap)
    assert all(rows <= 24 * FEW_LEFT for rows in kept)
    assert len(recordings) == 1 + len(kept)
    assert sum(a.tokens == b.tokens for a, b in zip(dear, plain, strict=True)) >= 22  # draws at a hair's breadth


def test_whole_rows_are_compared_each_by_itself() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    moved = logits.clone()
    moved[3] += torch.randn(40, generator=torch.Generator().manual_seed(1))
    apart = differences(moved, logits)
    assert apart.argmax() == 3
    for row in range(5):
        torch.testing.assert_close(float(apart[row]), difference(moved[row], logits[row]))


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_on_a_gpu_no_kernel_makes_a_plan_for_a_shape_that_comes_once(monkeypatch, length, masked, again) -> None:
    class OnCuda(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda")

    allowed: list[set[SDPBackend]] = []

    @contextmanager
    def kernels(backends: list[SDPBackend]) -> Iterator[None]:
        allowed.append(set(backends))
        yield

    def fused(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False):
        plain = (t.as_subclass(torch.Tensor) for t in (q, k, v))
        return sdpa(*plain, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)

    noise = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, heads, n, 8, generator=noise).bfloat16() for heads, n in ((4, length), (2, 6), (2, 6))]
    mask = (torch.rand(2, 1, length, 6, generator=noise) > 0.3) | (torch.arange(6) == 0) if masked else None
    expected = attend(*drawn, mask, False)
    sdpa = attention.F.scaled_dot_product_attention
    monkeypatch.setattr(attention, "sdpa_kernel", kernels)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", fused)
    found = attend(*(t.as_subclass(OnCuda) for t in drawn), mask, False, again)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected, rtol=0.02, atol=0.02)
    assert bool(allowed) != again
    assert all(SDPBackend.CUDNN_ATTENTION not in kinds for kinds in allowed)


def test_attribution_lengthens_no_table_that_its_longest_row_does_not_need(write_llama) -> None:
    pairs = unequal_pairs()
    model = star.load_model(write_llama())
    longest = max(len(p.corrupted) + max(len(p.positive), len(p.negative)) for p in atp.prepare(model, pairs))
    longest = max(longest, *(len(p.clean) + max(len(p.positive), len(p.negative)) for p in atp.prepare(model, pairs)))
    model = star.load_model(write_llama(max_position_embeddings=longest))
    attributed(model, pairs)
    assert [len(block.attn.rotary_cos) for block in model.blocks] == [longest] * 3
