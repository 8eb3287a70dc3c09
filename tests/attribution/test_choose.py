"""The choice of a layer: its null against simulated truths, its errors, ties, few pairs, and positions that hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import synthetic
import torch
from by_hand import unequal_pairs
from torch import Tensor
from transformer_lens import HookedTransformer

import star_tl as star
from star_tl.attribution.choose import LayerChoice, choose_layer, choose_positions, costs_of, effects_of, gains
from star_tl.errors import StarError
from star_tl.locus import Locus

PAIRS, DRAWS, LAYERS, WIDTH = 12, 2, 5, 48


def model_of_chance(seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Gradients that all pairs have much in common of, as real ones, so that any direction moves them alike."""
    chance = torch.Generator().manual_seed(seed)
    common = torch.randn(1, LAYERS, WIDTH, generator=chance)
    gradients = common + 0.3 * torch.randn(PAIRS, LAYERS, WIDTH, generator=chance)
    scales = torch.linspace(0.3, 3, WIDTH)  # drift costs more in some directions
    drift = scales * torch.randn(PAIRS, DRAWS, LAYERS, WIDTH, generator=chance)
    return gradients, drift, chance


def shared(chance: torch.Generator) -> Tensor:
    return torch.randn(1, WIDTH, generator=chance).expand(LAYERS, -1)


def independent(chance: torch.Generator) -> Tensor:
    return torch.randn(LAYERS, WIDTH, generator=chance)


def wandering(chance: torch.Generator) -> Tensor:
    """A little more at each layer, as in a residual stream, of growing norm."""
    return (torch.randn(LAYERS, WIDTH, generator=chance) * torch.linspace(1, 3, LAYERS)[:, None]).cumsum(0)


@pytest.mark.parametrize("directions", [shared, independent, wandering])
def test_one_random_direction_in_twenty_passes_the_test(directions: Callable[[torch.Generator], Tensor]) -> None:
    runs = 1000
    passed, flipped = 0, 0
    for seed in range(runs):
        gradients, drift, chance = model_of_chance(seed)
        vectors = directions(chance)
        passed += choose_layer(gradients, drift, vectors, resamples=199, seed=seed).p_value <= 0.05
        # What was tested before: whether the gain survives that each pair's replies are exchanged at random.
        effects, cost = effects_of(gradients, vectors), costs_of(drift, vectors).mean((0, 1))
        signs = 2.0 * torch.randint(2, (199, PAIRS), generator=chance) - 1
        null = gains(signs.double() @ effects / PAIRS, cost).amax(1)
        flipped += (1 + int((null >= gains(effects.mean(0), cost).max()).sum())) / 200 <= 0.05
    assert 0.03 <= passed / runs <= 0.07  # standard error 0.007
    assert flipped / runs > 0.2, "the simulation must be one that flipped labels fail"


def test_a_direction_that_knows_the_trait_passes() -> None:
    for seed in range(20):
        gradients, drift, chance = model_of_chance(seed)
        vectors = 0.5 * independent(chance)
        vectors[3] += gradients.mean(0)[3]
        choice = choose_layer(gradients, drift, vectors, resamples=199, seed=seed)
        assert (choice.layer, choice.singled_out) == (3, True)
        assert choice.describe().startswith("layer 3 in ")


def map_of(effects: Tensor, costs: Tensor | None = None) -> star.AttributionMap:
    attr = synthetic.attribution(n_pairs=len(effects), layers=effects.shape[1], peak=0)
    found = synthetic.priced(effects, costs if costs is not None else torch.full_like(effects, 0.1))
    return dataclasses.replace(attr, differences=found[0], gradients=found[1], drift_gradients=found[2])


def test_layers_that_share_the_resamples_are_shown_as_a_tie_and_none_as_chosen() -> None:
    noise = 0.5 * torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    attr = map_of(noise - noise.mean(0) + torch.tensor([0.0, 0.2, 1.0, 1.05, 1.05, 0.1]))
    choice = attr.choose_layer()
    assert not choice.singled_out
    assert choice.tied == (2, 3, 4)
    for words in (choice.describe(), repr(attr)):
        assert "do not single out a layer: layers 2, 3 and 4 share " in words
        assert "chosen" not in words
    alone = map_of(noise + torch.tensor([0.0, 0.2, 2.0, 0.99, 0.98, 0.1])).choose_layer()
    assert (alone.singled_out, alone.tied) == (True, (2,))


def test_a_layer_that_random_directions_reach_is_not_singled_out_however_steady() -> None:
    gradients, drift, chance = model_of_chance(0)
    vectors = shared(chance)
    for _ in range(50):  # a direction that gains about what the best of five random ones do
        choice = choose_layer(gradients, drift, vectors, resamples=199)
        if 0.3 < choice.p_value < 0.7 and choice.frequency.max() > 0.9:
            break
        vectors = shared(chance)
    assert choice.frequency[choice.layer] > 0.9
    assert not choice.singled_out
    assert "do not single out a layer" in choice.describe()


@pytest.mark.parametrize("pairs", [1, 7])
def test_few_pairs_are_not_resampled(pairs: int) -> None:
    attr = map_of(torch.tensor([0.1, 0.9, 0.3]).expand(pairs, -1))
    choice = attr.choose_layer()
    assert choice.layer == 1
    assert not choice.singled_out
    for bootstrap in (choice.low, choice.high, choice.frequency):
        assert bool(bootstrap.isnan().all())
    assert "too few pairs" in repr(attr)
    assert "%" not in repr(attr)
    assert attr.to_frame().resamples.isna().all()
    assert attr.top_locus().layer == 1


def test_other_traits_vectors_are_set_against_this_one(tmp_path: Path) -> None:
    attr = map_of(torch.tensor([0.1, 0.9, 0.3]).expand(12, -1))
    controls = 0.5 * attr.differences[None] + torch.zeros(2, 1, 1)
    controls[1] *= -1
    controls[0, :, 1] = controls[0, :, 0]  # half along the pairs' own direction, at 45 degrees
    attr = dataclasses.replace(attr, controls=controls, control_names=("like", "unlike"))
    attr.save(tmp_path / "map.safetensors")
    choice = star.AttributionMap.load(tmp_path / "map.safetensors").choose_layer()
    assert choice.control_gains["like"] == pytest.approx(float(choice.gain[1]) / 2**0.5, rel=1e-5)
    assert choice.control_gains["unlike"] == pytest.approx(-0.1, rel=1e-5)
    assert choice.specific
    same = dataclasses.replace(attr, controls=2 * attr.differences[None], control_names=("twin",)).choose_layer()
    assert not same.specific
    assert "not specific, as the vector of twin gains as much" in same.describe()


def test_controls_are_the_mean_differences_of_other_pairs(tiny: HookedTransformer) -> None:
    other = star.load_pairs("agreement")
    attr = star.attribute(tiny, unequal_pairs(), controls=[other], progress=False)
    assert attr.control_names == ("agreement",)
    for layer in range(3):
        vector = star.extract_vector(tiny, other, Locus(f"blocks.{layer}.hook_resid_post")).vector[0]
        torch.testing.assert_close(attr.controls[0, layer], vector, rtol=1e-4, atol=1e-5)


def test_the_two_errors_are_those_of_other_signs_and_of_other_pairs() -> None:
    """Against many maps drawn anew: of the same pairs with other signs, and of other pairs."""
    n, draws, runs = 30, 4, 400
    direction = torch.zeros(1, 8)
    direction[0, 0] = 1
    truth = torch.Generator().manual_seed(0)
    pair_scale = 0.5 + torch.rand(n, generator=truth)
    effect = 1 + 0.3 * torch.randn(n, generator=truth)

    def choice(chance: torch.Generator, anew: bool) -> LayerChoice:
        scale = 0.5 + torch.rand(n, generator=chance) if anew else pair_scale
        effects = 1 + 0.3 * torch.randn(n, generator=chance) if anew else effect
        gradients, drift = torch.zeros(n, 1, 8), torch.randn(n, draws, 1, 8, generator=chance)
        gradients[:, 0, 0] = effects
        return choose_layer(gradients, scale[:, None, None, None] * drift, direction, resamples=2)

    chance = torch.Generator().manual_seed(1)
    same, anew = ([choice(chance, x) for _ in range(runs)] for x in (False, True))
    spread_same, spread_anew = (float(torch.cat([c.gain for c in found]).std()) for found in (same, anew))
    signs = float(torch.cat([c.error_signs for c in same]).mean())
    both = float(torch.cat([(c.error_pairs**2 + c.error_signs**2).sqrt() for c in anew]).mean())
    assert signs == pytest.approx(spread_same, rel=0.15)
    assert both == pytest.approx(spread_anew, rel=0.15)
    assert spread_anew > 1.1 * spread_same
    with_many = torch.cat([c.error_signs for c in same]).mean()
    draws = 16
    assert float(torch.cat([choice(chance, False).error_signs for _ in range(50)]).mean()) < 0.6 * float(with_many)


def test_one_draw_cannot_tell_what_signs_do() -> None:
    attr = map_of(torch.rand(12, 3, generator=torch.Generator().manual_seed(0)))
    one = dataclasses.replace(attr, drift_gradients=attr.drift_gradients[:, :1])
    assert bool(one.choose_layer().error_signs.isnan().all())


def covering(scores: list[float], coverage: float) -> set[int]:
    """The largest positive scores, one by one until they hold the share, at most four."""
    total, taken = sum(max(x, 0) for x in scores), set()
    for k in sorted(range(len(scores)), key=lambda k: -scores[k]):
        if scores[k] <= 0 or sum(scores[i] for i in taken) >= coverage * total or len(taken) == 4:
            break
        taken.add(k)
    return taken


def test_positions_stay_that_most_resamples_choose_too() -> None:
    dropped = 0
    for seed in range(12):
        chance = torch.Generator().manual_seed(seed)
        effects = torch.randn(9, 7, generator=chance) + torch.tensor([0, 0, 0, 0.3, 0, 0.3, 1])
        taken = covering(effects.mean(0).tolist(), 0.95)
        choice = choose_positions(effects, 0.95, resamples=300, seed=seed)
        drawn = torch.randint(9, (300, 9), generator=torch.Generator().manual_seed(seed))
        found = [covering(effects[rows].mean(0).tolist(), 0.95) for rows in drawn]
        often = {k: sum(k in one for one in found) / 300 for k in range(7)}
        assert choice.frequency.tolist() == pytest.approx(list(often.values()), abs=0.01)
        assert choice.positions == tuple(sorted(k - 7 for k in taken if often[k] > 0.5))
        dropped += len(taken) - len(choice.positions)
        few = choose_positions(effects[:7], 0.95)
        assert few.positions == tuple(sorted(k - 7 for k in covering(effects[:7].mean(0).tolist(), 0.95)))
        assert bool(few.frequency.isnan().all())
    assert dropped > 0


@pytest.mark.parametrize(
    ("moved", "metric", "says"),
    [
        ([0.2] * 12, "", ""),
        ([0.2] * 10 + [-0.1] * 2, "", ""),
        ([0.09] * 12, "", r"by \+0.09 nats only, in 0 of 12 pairs the wrong way"),
        ([1.0] * 9 + [-0.1] * 3, "", "in 3 of 12 pairs the instruction moves the metric the wrong way"),
        ([0.09] * 12, "mine", ""),  # whose unit is not known
        ([0.09] * 9 + [-0.01] * 3, "mine", "in 3 of 12 pairs"),
    ],
)
def test_a_map_says_where_the_instruction_hardly_moves_the_metric(moved: list[float], metric: str, says: str) -> None:
    low = torch.linspace(-3, -1, 12)
    attr = synthetic.attribution(n_pairs=12)
    attr = dataclasses.replace(attr, metric=metric, metric_corrupted=low, metric_clean=low + torch.tensor(moved))
    assert re.search(says, attr.caution)
    assert bool(attr.caution) == bool(says)
    assert (attr.caution in repr(attr)) if says else repr(attr).endswith("nats)")


@pytest.mark.parametrize(
    "call",
    [
        lambda attr: attr.choose_layer(resamples=0),
        lambda attr: attr.choose_layer(resamples=-1),
        lambda attr: attr.choose_layer(seed=0.5),
        lambda attr: attr.choose_layer(seed=10**30),
        lambda attr: attr.choose_layer(vector=1.5),
        lambda attr: attr.effect(torch.ones(2, 8, 64)),
        lambda attr: attr.effect(torch.ones(3, 64)),
        lambda attr: attr.choose_positions(99),
        lambda attr: attr.choose_positions(None),
        lambda attr: attr.top_locus("most"),
        lambda attr: attr.top_locus(True),
    ],
)
def test_odd_arguments_of_a_map_are_refused_in_one_line(call: Callable[[star.AttributionMap], object]) -> None:
    with pytest.raises(StarError, match=r"^[^\n]+$"):
        call(synthetic.attribution())


def test_a_vector_of_another_width_is_refused() -> None:
    with pytest.raises(StarError, match="does not fit a width of 64"):
        synthetic.attribution().effect(torch.ones(5))
