"""What is recorded waits for nothing and goes on as Python would: steps and passes as graphs, on the processor."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from by_hand import unequal_pairs
from capture import Captured, Refused, graphs_on_the_processor

import star_tl as star
from star_tl.attribution import atp, repeated
from star_tl.attribution.repeated import Repeated
from star_tl.generation.sampling import in_batches, render_prompts
from star_tl.models.fast import decode
from star_tl.models.fast.recording import Recording
from star_tl.steering.hooks import injection_hooks, row_hooks

PROMPTS = ("My sister lost her job.", "no", "Would you sell the bicycle?", "Who is it?")
MIDDLE = star.Locus("blocks.1.hook_resid_post")


@pytest.fixture
def recordings(monkeypatch) -> list[Captured]:
    """Everything is recorded that would be on a card; the recordings."""
    monkeypatch.setattr(decode, "RECORDED_ON", ("cpu",))
    monkeypatch.setattr(atp, "RECORDED_ON", ("cpu",))
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS.keys())
def test_a_step_that_is_recorded_writes_what_the_plain_one_writes(
    tiny_folder, monkeypatch, hooks: Callable[[], Any], dtype: str
) -> None:
    model = star.load_model(tiny_folder, dtype=dtype)
    write = partial(star.generate, model, PROMPTS, max_new_tokens=7, temperature=0, progress=False)
    plain = write(hooks())
    monkeypatch.setattr(decode, "RECORDED_ON", ("cpu",))
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


FIELDS = ("scores", "head_scores", "steering", "span_steering", "gradients", "position_effects", "metric_clean")


def apart(one: star.AttributionMap, other: star.AttributionMap) -> float:
    """The largest difference, as a share of the largest number of its kind."""
    pairs = [(getattr(one, name).nan_to_num(), getattr(other, name).nan_to_num()) for name in FIELDS]
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


FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "other numbers": (lambda made: setattr(made, "metrics", made.metrics + 1) or made, "were not the same"),
    "no numbers": (lambda made: setattr(made, "drift", made.drift * torch.nan) or made, "were not the same"),
    "no memory": (lambda made: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.\nTried")), "memory"),
    "refused": (lambda made: bool(made.metrics.any()) and made, "reads a number"),
}


@pytest.mark.parametrize(("fault", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_passes_that_cannot_be_recorded_or_differ_are_given_up_with_one_warning(
    tiny, recordings, monkeypatch, fault: Callable[[Any], Any], said: str
) -> None:
    again = Repeated._again
    monkeypatch.setattr(Repeated, "_again", lambda self: fault(again(self)))
    released: list[Recording[Any]] = []
    monkeypatch.setattr(Recording, "release", lambda self: released.append(self))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = attributed(tiny, unequal_pairs())
    (line,) = [str(w.message) for w in caught if "CUDA graph" in str(w.message)]
    assert said in line
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


def test_the_fields_that_are_compared_are_the_maps_own() -> None:
    assert set(FIELDS) <= {f.name for f in dataclasses.fields(star.AttributionMap)}
    assert repeated.WORTH > 1
