"""Exact patching against patching by hand on stock run_with_hooks, one sequence at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import star_tl as star
from star_tl.attribution.align import prepare
from star_tl.attribution.exact import Place
from star_tl.attribution.verify import measure_layers
from star_tl.errors import StarError
from star_tl.locus import COMPONENTS, Locus

KINDS = (*COMPONENTS, "z")
LOCI = (
    Locus("blocks.1.hook_resid_post", (-1,)),
    Locus("blocks.2.hook_attn_out", (-5,)),
    Locus("blocks.1.attn.hook_z", (-2,), 3),
    Locus("blocks.1.hook_resid_pre", (-4,)),
    Locus("blocks.0.hook_mlp_out", (-3, -1)),
    Locus("blocks.2.hook_resid_mid", (-1, -7)),
)


@pytest.fixture(scope="module")
def pairs() -> star.Pairs:
    built_in = star.load_pairs("agreement").extraction
    return replace(built_in, pairs=built_in.pairs[:3])


def by_hand(model, prepared, locus: Locus) -> float:
    ends = len(prepared.corrupted), len(prepared.clean)
    return patched(model, prepared, locus, [(ends[0] + p, ends[1] + p) for p in locus.positions])


def patched(model, prepared, locus, columns: list[tuple[int, int]]) -> float:
    """The effect of setting corrupted columns to the clean run's, at the hook point and head of ``locus``."""

    def metric(hooks=()) -> float:
        means = []
        for reply in (prepared.positive, prepared.negative):
            tokens = torch.tensor([[*prepared.corrupted.ids, *reply]])
            logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks)).log_softmax(-1)
            rows = logits[0, len(prepared.corrupted) - 1 : -1]
            means.append(rows.gather(-1, torch.tensor(reply)[:, None]).mean())
        return float(means[0] - means[1])

    _, cache = model.run_with_cache(torch.tensor([prepared.clean.ids]))
    clean = cache[locus.hook_point]

    def patch(activation, hook):
        for here, there in columns:
            at = (0, here) if locus.head is None else (0, here, locus.head)
            activation[at] = clean[(0, there, *at[2:])]
        return activation

    return metric([(locus.hook_point, patch)]) - metric()


def test_effects_equal_patching_by_hand(tiny, pairs: star.Pairs) -> None:
    found = star.exact_effects(tiny, pairs, LOCI, rows_per_batch=4, progress=False)
    truth = torch.tensor([[by_hand(tiny, p, locus) for locus in LOCI] for p in prepare(tiny, pairs)])
    assert truth.abs().max() > 1e-3
    torch.testing.assert_close(found, truth, atol=2e-5, rtol=0)


def test_verification_takes_the_largest_and_a_sample_of_the_rest(tiny, pairs: star.Pairs) -> None:
    attr = star.attribute(tiny, pairs, progress=False)
    found = star.verify(tiny, pairs, attr, top_k=5, sample=7, progress=False)
    assert len(set(found.loci)) == 24
    for region in (slice(12), slice(12, 24)):
        mine, estimate = found.chosen[region], found.estimate[region].abs()
        assert mine == (True,) * 5 + (False,) * 7
        assert estimate[:5].min() >= estimate[5:].max()
    assert not found.chosen[found.loci.index(found.largest_missed[0])]
    truth = star.exact_effects(tiny, pairs, found.loci, progress=False).mean(0)
    torch.testing.assert_close(found.exact, truth)
    ranked = torch.stack([ranks(found.estimate), ranks(truth)])
    assert found.spearman == pytest.approx(float(torch.corrcoef(ranked)[0, 1]))
    torch.testing.assert_close(found.completeness, attr.completeness())


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Of each value the mean number of values below it, ties counted half."""
    below, equal = (values[:, None] > values).sum(1), (values[:, None] == values).sum(1)
    return below + equal / 2.0


def test_places_of_the_system_turn_are_counted_from_its_beginning(tiny, pairs: star.Pairs) -> None:
    attr = star.attribute(tiny, pairs, progress=False)
    found = star.verify(tiny, pairs, attr, top_k=3, sample=9, progress=False)
    places = [(k, x) for k, x in enumerate(found.loci) if x.region == "system"]
    assert len(places) == 12
    prompts = prepare(tiny, pairs)
    for k, x in places:
        truth, estimates = [], []
        for i, p in enumerate(prompts):
            kind, layer = KINDS.index(x.kind), int(x.hook_point.split(".")[1])
            column = attr.prompt_end - len(p.corrupted) + x.position
            scores = attr.scores[i, kind, layer] if x.head is None else attr.head_scores[i, layer, x.head]
            estimates.append(float(scores[column]))
            there = p.counterpart[x.position]
            truth.append(patched(tiny, p, x, [(x.position, there)]) if there >= 0 else 0.0)
        assert float(found.estimate[k]) == pytest.approx(sum(estimates) / len(estimates), abs=1e-7)
        assert float(found.exact[k]) == pytest.approx(sum(truth) / len(truth), abs=2e-5)
    table = found.by_region().set_index(["region", "hook_point"])
    mine = [k for k, _ in places]
    wanted = torch.corrcoef(torch.stack([found.estimate[mine], found.exact[mine]]))[0, 1]
    assert table.pearson["system", "all"] == pytest.approx(float(wanted), abs=1e-5)
    assert "system Pearson" in repr(found)
    assert "completeness" in repr(found)


def test_layers_are_measured_where_no_instruction_stands(tiny, pairs: star.Pairs) -> None:
    attr = star.attribute(tiny, pairs, progress=False)
    table = measure_layers(tiny, pairs, attr, layers=[0, 2])
    for row in table.itertuples():
        assert row.strength**2 * float(attr.cost(attr.differences)[:, row.layer].mean()) == pytest.approx(0.1, rel=1e-4)
        drift, moved = [], []
        for p in prepare(tiny, pairs):
            end, kl, metric = len(p.steered), 0.0, [0.0, 0.0]
            for sign, reply in ((1, p.positive), (-1, p.negative)):

                def add(activation, hook, end=end):
                    activation[:, end - 1] += row.strength * attr.differences[row.layer]  # noqa: B023
                    return activation

                tokens, at = torch.tensor([[*p.steered.ids, *reply]]), slice(end - 1, -1)
                plain = tiny(tokens)[0, at].log_softmax(-1)
                hooks = [(f"blocks.{row.layer}.hook_resid_post", add)]
                steered = tiny.run_with_hooks(tokens, fwd_hooks=hooks)[0, at].log_softmax(-1)
                kl += float((steered.exp() * (steered - plain)).sum())
                for k, logprobs in enumerate((plain, steered)):
                    metric[k] += sign * float(logprobs.gather(-1, torch.tensor(reply)[:, None]).mean())
            drift.append(kl / (len(p.positive) + len(p.negative)))
            moved.append(metric[1] - metric[0])
        assert row.drift == pytest.approx(sum(drift) / len(drift), rel=1e-3)
        assert row.moved == pytest.approx(sum(moved) / len(moved), rel=1e-3, abs=1e-5)


def test_verification_refuses_a_map_of_other_pairs(tiny, pairs: star.Pairs) -> None:
    attr = star.attribute(tiny, pairs, progress=False)
    with pytest.raises(star.StarError, match="attribute again"):
        star.verify(tiny, replace(pairs, pairs=pairs.pairs[:2]), attr, progress=False)


def test_the_map_of_exact_effects_holds_patching_by_hand_of_every_token(tiny, pairs: star.Pairs) -> None:
    two = replace(pairs, pairs=pairs.pairs[:2])
    attr = star.attribute(tiny, two, method="exact", hook_points=["attn_out", "z"], batch_size=5, progress=False)
    assert attr.scores[:, [i for i, c in enumerate(COMPONENTS) if c != "attn_out"]].isnan().all()
    atp = star.attribute(tiny, two, hook_points=["attn_out", "z"], progress=False)
    for name in ("metric_clean", "metric_corrupted"):
        torch.testing.assert_close(getattr(attr, name), getattr(atp, name), atol=1e-5, rtol=0)
    for i, p in enumerate(prepare(tiny, two)):
        for column in (-1, -4, -7):
            found = [
                attr.component("attn_out")[i, 1, attr.prompt_end + column],
                attr.head_scores[i, 2, 3, attr.prompt_end + column],
            ]
            loci = Locus("blocks.1.hook_attn_out", (column,)), Locus("blocks.2.attn.hook_z", (column,), 3)
            assert [float(x) for x in found] == pytest.approx([by_hand(tiny, p, x) for x in loci], abs=2e-5)
        assert float(attr.component("attn_out")[i, :, attr.prompt_end - len(p.corrupted)].abs().max()) == 0, "BOS"
    # To first order the two agree, in the replies too.
    both = torch.stack([attr.component("attn_out"), atp.component("attn_out")])
    replies = both[..., attr.prompt_end :].flatten(1)
    assert float(replies.abs().max()) > 1e-3
    assert float(torch.corrcoef(replies)[0, 1]) > 0.9
    with pytest.raises(StarError, match="no gradient at resid_post to choose by: attribute with method='atp'"):
        replace(attr, scores=torch.ones_like(attr.scores)).top_locus()


def test_the_effect_of_a_reply_token_is_that_of_patching_it_in_its_own_row(tiny, pairs: star.Pairs) -> None:
    one = replace(pairs, pairs=pairs.pairs[:1])
    attr = star.attribute(tiny, one, method="exact", hook_points=["mlp_out"], progress=False)
    (p,) = prepare(tiny, one)
    point, layer, column = "blocks.1.hook_mlp_out", 1, 2
    begin = [s.start for s in attr.spans[0] if s.name.endswith("reply")]
    for sign, reply, start in zip((1, -1), (p.positive, p.negative), begin, strict=True):
        tokens = torch.tensor([[*p.corrupted.ids, *reply]])
        _, cache = tiny.run_with_cache(torch.tensor([[*p.clean.ids, *reply]]))

        def patch(activation, hook, cache=cache):
            activation[0, len(p.corrupted) + column] = cache[point][0, len(p.clean) + column]
            return activation

        def mean(hooks=(), tokens=tokens, reply=reply) -> float:
            rows = tiny.run_with_hooks(tokens, fwd_hooks=list(hooks)).log_softmax(-1)[0, len(p.corrupted) - 1 : -1]
            return float(rows.gather(-1, torch.tensor(reply)[:, None]).mean())

        truth = sign * (mean([(point, patch)]) - mean())
        assert abs(truth) > 1e-5
        assert float(attr.component("mlp_out")[0, layer, start + column]) == pytest.approx(truth, abs=2e-6)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (Locus("blocks.1.hook_resid_post", (-300,)), r"The shortest prompt has \d+ tokens, none at -300: [^\n]+"),
        (Place("blocks.1.hook_resid_post", 300), r"The shortest prompt has \d+ tokens, none at 300: [^\n]+"),
        (Locus("blocks.9.hook_resid_post"), r"The model has no hook point 'blocks\.9\.hook_resid_post': [^\n]+"),
        (Locus("blocks.1.attn.hook_z", head=9), r"The model has no head 9: it has 4 per layer\."),
    ],
)
def test_a_place_that_is_not_there_is_refused_in_one_line(tiny, pairs: star.Pairs, place: Locus, says: str) -> None:
    with pytest.raises(StarError, match=f"^{says}$"):
        star.exact_effects(tiny, pairs, [Locus("blocks.1.hook_resid_post"), place], progress=False)


@pytest.mark.parametrize("layer", [-1, 3, 1.5])
def test_a_layer_that_is_not_there_is_not_measured(tiny, pairs: star.Pairs, layer: object) -> None:
    attr = star.attribute(tiny, pairs, progress=False)
    with pytest.raises(StarError, match=r"^(A layer is|The map has no layer) [^\n]+$"):
        measure_layers(tiny, pairs, attr, layers=[0, layer])
    assert measure_layers(tiny, pairs, attr, layers=np.array([0, 2])).layer.tolist() == [0, 2]


def test_verification_refuses_pairs_that_are_numbered_alike(tiny, pairs: star.Pairs) -> None:
    attr = star.attribute(tiny, pairs, progress=False)
    other = replace(pairs, pairs=tuple(replace(p, positive=f"{p.positive} Indeed.") for p in pairs))
    renamed = replace(pairs, trait=replace(pairs.trait, name="another"))
    for wrong in (other, renamed):
        with pytest.raises(StarError, match="other pairs"):
            star.verify(tiny, wrong, attr, progress=False)


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (lambda logits, replies: logits.log_softmax(-1)[..., 5].mean(), r"shape \[\] for \d pairs: [^\n]+"),
        (lambda logits, replies: logits[:, 0, 5], r"shape \[\d+\] for \d+ pairs: [^\n]+"),
        (lambda logits, replies: [1.0], r"a list for \d+ pairs: [^\n]+"),
    ],
)
def test_a_metric_of_another_shape_is_refused_in_one_line(tiny, pairs: star.Pairs, metric, says: str) -> None:
    with pytest.raises(StarError, match=f"^The metric gives {says}$"):
        star.attribute(tiny, pairs, metric=metric, progress=False)


def test_a_metric_without_a_gradient_or_a_number_is_refused(tiny, pairs: star.Pairs) -> None:
    def detached(logits, replies):
        return logits.detach()[: len(logits) // 2, 0, 5]

    def broken(logits, replies):
        return logits[: len(logits) // 2, 0, 5] * float("nan")

    with pytest.raises(StarError, match=r"^The metric has no gradient: [^\n]+$"):
        star.attribute(tiny, pairs, metric=detached, progress=False)
    for measure in (
        lambda: star.attribute(tiny, pairs, metric=broken, progress=False),
        lambda: star.exact_effects(tiny, pairs, [Locus("blocks.1.hook_resid_post")], metric=broken, progress=False),
    ):
        with pytest.raises(StarError, match=r"^The metric of pair [^\n]+ is nan and nan: [^\n]+$"):
            measure()
