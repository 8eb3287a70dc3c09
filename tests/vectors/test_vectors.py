"""Steering vectors against means taken one unpadded prompt at a time, and what they say about themselves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import by_hand
import hf_reference
import pytest
import torch
from by_hand import make_pairs, pair, unequal_pairs
from torch import Tensor

import star_tl as star
from star_tl.errors import StarError
from star_tl.locus import Locus
from star_tl.models.lens import HookedTransformer
from star_tl.vectors import SteeringVector, extract_vector, extract_vectors
from star_tl.vectors.methods import METHODS, shrunk_covariance
from star_tl.vectors.survey import survey

LOCI = [
    Locus("blocks.0.hook_resid_pre"),
    Locus("blocks.1.hook_resid_mid", (-4, -2)),
    Locus("blocks.2.hook_resid_post", (-3, -1)),
    Locus("blocks.1.hook_attn_out", (-1, -2, -5)),
    Locus("blocks.2.hook_mlp_out"),
    Locus("blocks.1.attn.hook_z", (-2, -1), 3),
]


@pytest.fixture(scope="module")
def exact(tiny_folder: Path) -> HookedTransformer:
    """The tiny model in float64, so that padding can only matter where it is let in."""
    return star.load_model(str(tiny_folder), dtype="float64")


def stock(model: HookedTransformer, tokens: list[int], locus: Locus) -> Tensor:
    """``[position d]`` at the locus's hook point and head, from one unpadded row."""
    acts = model.run_with_cache(torch.tensor([tokens]))[1][locus.hook_point][0]
    return acts if locus.head is None else acts[:, locus.head]


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Vectors are stored in float32 (eps 6e-8) and are of order 1."""
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-7)


# Extraction.


@pytest.mark.parametrize("locus", LOCI, ids=str)
def test_the_located_vector_is_the_mean_difference_at_the_locus(exact: HookedTransformer, locus: Locus) -> None:
    pairs, differences, norms = unequal_pairs(), [], []
    for p in pairs:
        rows = [stock(exact, tokens, locus) for tokens in by_hand.prompts(exact, pairs, p)]
        clean, corrupted = (torch.stack([row[k] for k in locus.positions]) for row in rows)
        differences.append(clean - corrupted)
        norms.append(corrupted.norm(dim=-1).mean())
    truth = torch.stack(differences).mean(0)
    for batch_size in (1, 2, 16):
        vector = extract_vector(exact, pairs, locus, batch_size=batch_size)
        if locus.hook_point != "blocks.0.hook_resid_pre":  # the token itself, the same in both runs
            assert truth.norm(dim=-1).min() > 0.05
        assert_close(vector.vector, truth)
        assert vector.vector.dtype == torch.float32
        assert vector.residual_norm == pytest.approx(float(torch.stack(norms).mean()))
        assert (vector.locus, vector.method, vector.trait, vector.n_pairs) == (locus, "located", "warmth", 5)


@pytest.mark.parametrize("locus", [LOCI[2], LOCI[5]], ids=str)
def test_the_reply_mean_is_over_each_replys_own_tokens(exact: HookedTransformer, locus: Locus) -> None:
    pairs, differences, norms = unequal_pairs(), [], []
    for p in pairs:
        context = by_hand.ids(exact, p.context)
        replies = [by_hand.reply(exact, text) for text in (p.positive, p.negative)]
        positive, negative = (stock(exact, context + r, locus)[len(context) :] for r in replies)
        differences.append(positive.mean(0) - negative.mean(0))
        norms.append(negative.norm(dim=-1).mean())
    truth = torch.stack(differences).mean(0, keepdim=True)
    for batch_size in (1, 2, 16):
        vector = extract_vector(exact, pairs, locus, method="reply_mean", batch_size=batch_size)
        assert_close(vector.vector, truth)
        assert vector.residual_norm == pytest.approx(float(torch.stack(norms).mean()))
        assert (vector.locus, vector.method) == (Locus(locus.hook_point, (-1,), locus.head), "reply_mean")


@pytest.mark.parametrize("method", ["located", "reply_mean"])
def test_only_the_extraction_split_is_used(tiny: HookedTransformer, method: str) -> None:
    kept, held = pair("kept", "My cat died.", "Oh no.", "OK."), pair("held", "Hi", "A b", "C d", split="heldout")
    both, one = (extract_vector(tiny, p, LOCI[2], method) for p in (make_pairs(held, kept), make_pairs(kept)))
    torch.testing.assert_close(both.vector, one.vector)
    assert both.n_pairs == 1


def differences_of(model: HookedTransformer, locus: Locus) -> tuple[Tensor, Tensor]:
    """Clean and corrupted ``[pair position d]`` of the unequal pairs, one unpadded prompt at a time."""
    rows = []
    for p in unequal_pairs():
        prompts = (stock(model, tokens, locus) for tokens in by_hand.prompts(model, unequal_pairs(), p))
        rows.append([torch.stack([row[k] for k in locus.positions]) for row in prompts])
    clean, corrupted = (torch.stack(side) for side in zip(*rows, strict=True))
    return clean, corrupted


def test_the_principal_direction_is_that_of_the_uncentred_differences(exact: HookedTransformer) -> None:
    vector = extract_vector(exact, unequal_pairs(), LOCI[2], "principal").vector.double()
    clean, corrupted = differences_of(exact, LOCI[2])
    for k in range(2):
        d = (clean - corrupted)[:, k]
        largest = torch.linalg.eigh(d.T @ d).eigenvectors[:, -1]
        assert_close(vector[k].float(), largest * (largest @ d.mean(0)))
        centred = torch.linalg.eigh((d - d.mean(0)).T @ (d - d.mean(0))).eigenvectors[:, -1]
        assert abs(torch.cosine_similarity(centred, vector[k], dim=0)) < 0.95


def test_the_probe_is_a_shrunk_discriminant(exact: HookedTransformer) -> None:
    vector = extract_vector(exact, unequal_pairs(), LOCI[2], "probe").vector.double()
    clean, corrupted = differences_of(exact, LOCI[2])
    for k in range(2):
        d = clean[:, k].mean(0) - corrupted[:, k].mean(0)
        within = torch.cat([clean[:, k] - clean[:, k].mean(0), corrupted[:, k] - corrupted[:, k].mean(0)])
        w = torch.linalg.inv(shrunk_covariance(within)) @ d
        assert_close(vector[k].float(), w * (w @ d) / (w @ w))
    with pytest.raises(StarError, match="at least 2 pairs"):
        extract_vector(exact, make_pairs(pair("a", "My cat died.", "Oh no.", "OK.")), LOCI[2], "probe")


def test_methods_are_pure_functions_of_activations_and_known_by_one_record() -> None:
    chance = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randn(2, 9, 3, 7, generator=chance, dtype=torch.float64)
    clean[..., 0] += 2
    for key, method in METHODS.items():
        before = clean.clone(), corrupted.clone()
        rows = method.rows(clean, corrupted)
        assert rows.shape == (3, 7), key
        assert torch.equal(clean, before[0])
        assert torch.equal(corrupted, before[1])
        # Strength 1 moves as far along the vector as the pairs do on average.
        along = ((clean - corrupted).mean(0) * rows).sum(-1)
        torch.testing.assert_close(along, rows.square().sum(-1))
        assert str(method) in (extract_vector.__doc__ or "")
        assert key == method.key


def test_shrinkage_is_ledoit_and_wolfs() -> None:
    noise = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.5, 3, 12, dtype=torch.float64)
    x = torch.randn(40, 12, generator=noise, dtype=torch.float64) * spread
    x -= x.mean(0)
    s, mean = x.T @ x / 40, float((x**2).mean())
    target = mean * torch.eye(12, dtype=torch.float64)
    # Their lemma, term by term: the mean squared distance of single outer products from the covariance.
    b = sum(((row[:, None] * row[None] - s) ** 2).sum() for row in x) / 40**2
    share = float(b / ((s - target) ** 2).sum())
    assert 0 < share < 1
    torch.testing.assert_close(shrunk_covariance(x), share * target + (1 - share) * s)
    many = torch.randn(20_000, 12, generator=noise, dtype=torch.float64) * spread
    torch.testing.assert_close(shrunk_covariance(many), many.T @ many / 20_000, rtol=1e-2, atol=1e-2)


def test_vectors_add_up_and_lose_what_is_projected_off(tiny: HookedTransformer) -> None:
    one = extract_vector(tiny, unequal_pairs(), LOCI[2])
    other = one.random_like(3)
    both = star.combine([one, other], [2, -0.5])
    torch.testing.assert_close(both.vector, 2 * one.vector - 0.5 * other.vector)
    assert both.trait == "2 warmth + -0.5 warmth"
    off = star.project_off(one, other)
    torch.testing.assert_close((off.vector * other.vector).sum(-1), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        off.vector.norm(dim=-1) ** 2,
        one.vector.norm(dim=-1) ** 2 - ((one.vector * other.vector).sum(-1) / other.vector.norm(dim=-1)) ** 2,
    )
    elsewhere = extract_vector(tiny, unequal_pairs(), LOCI[0])
    for call in (lambda: star.combine([one, elsewhere], [1, 1]), lambda: star.project_off(one, elsewhere)):
        with pytest.raises(StarError, match="one model at one locus"):
            call()
    with pytest.raises(StarError, match="a weight for each"):
        star.combine([one], [1, 2])
    with pytest.raises(StarError, match="is zero"):
        star.project_off(one, dataclasses.replace(one, vector=0 * one.vector))


@pytest.mark.parametrize("method", ["located", "reply_mean"])
def test_extraction_leaves_no_hooks(tiny: HookedTransformer, method: str) -> None:
    extract_vector(tiny, unequal_pairs(), LOCI[2], method)
    assert not by_hand.hooks_left(tiny)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    planted = tiny.blocks[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        extract_vector(tiny, unequal_pairs(), LOCI[2], method)
    planted.remove()
    assert not by_hand.hooks_left(tiny)


@pytest.mark.parametrize(
    ("locus", "arguments", "message"),
    [
        (LOCI[2], {"method": "locate"}, "Did you mean 'located'"),
        (LOCI[2], {"batch_size": 0}, "batch_size"),
        (LOCI[2], {"batch_size": -1}, "batch_size"),
        (LOCI[2], {"batch_size": None}, "batch_size is None"),
        (LOCI[2], {"method": None}, "Unknown vector method None"),
        ("blocks.1.hook_resid_post", {}, "give a Locus"),
        (Locus("blocks.3.hook_resid_post"), {}, "it has 3 layers"),
        (Locus("blocks.1.attn.hook_z", (-1,), 4), {}, "it has 4 per layer"),
        (Locus("blocks.1.hook_resid_post", (-400, -1)), {}, "shorter than the locus's position -400"),
    ],
)
def test_what_the_model_or_the_prompts_do_not_have_is_refused(
    tiny: HookedTransformer, locus: Locus, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(StarError, match=message):
        extract_vector(tiny, unequal_pairs(), locus, **arguments)


# The vector in the model.


@pytest.mark.parametrize("locus", LOCI[1:], ids=str)
def test_hooks_add_each_row_at_its_own_position_and_head_only(exact: HookedTransformer, locus: Locus) -> None:
    vector = extract_vector(exact, unequal_pairs(), locus)
    tokens = torch.tensor([by_hand.ids(exact, unequal_pairs()[1].context)])
    plain = exact.run_with_cache(tokens)[1][locus.hook_point][0]
    steered: list[Tensor] = []
    # Two entries of one name run in order: the second sees what the first has changed.
    reading = [*vector.hooks(strength=0.5), (locus.hook_point, lambda a, hook: steered.append(a[0].clone()))]
    exact.run_with_hooks(tokens, fwd_hooks=reading)
    wanted = plain.clone()
    for row, position in enumerate(locus.positions):
        target = wanted[position] if locus.head is None else wanted[position, locus.head]
        target += 0.5 * vector.vector[row].double()
    torch.testing.assert_close(steered[0], wanted, rtol=0, atol=1e-12)


def test_the_located_vector_at_strength_1_turns_one_pairs_corrupted_run_into_its_clean_run(
    exact: HookedTransformer,
) -> None:
    pairs = make_pairs(unequal_pairs()[0])
    clean, corrupted = by_hand.prompts(exact, pairs, pairs[0])
    last = Locus("blocks.2.hook_resid_post")
    vector = extract_vector(exact, pairs, last)
    steered = exact.run_with_hooks(torch.tensor([corrupted]), fwd_hooks=vector.hooks())[0, -1]
    torch.testing.assert_close(steered, exact(torch.tensor([clean]))[0, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), True, "1", None])
def test_a_strength_that_is_no_finite_number_is_refused(strength: Any) -> None:
    with pytest.raises(StarError, match="strength"):
        made().hooks(strength=strength)


# The vector by itself.


def made(**changes: Any) -> SteeringVector:
    """A vector of two rows, of norms 5 and 13, put together by hand."""
    fields: dict[str, Any] = {
        "vector": torch.tensor([[3.0, 4.0, 0.0], [0.0, 5.0, -12.0]]),
        "locus": Locus("blocks.1.hook_resid_post", (-3, -1)),
        "trait": "warmth",
        "method": "located",
        "residual_norm": 18.0,
        "n_pairs": 7,
        "model": "a model",
        "fingerprint": "0123456789abcdef",
        "template": "fedcba9876543210",
    }
    return SteeringVector(**(fields | changes))


def test_strength_1_is_given_raw_and_as_a_fraction_of_the_residual() -> None:
    assert made().norm == pytest.approx(9.0)
    assert made().fraction == pytest.approx(0.5)
    assert "norm 9.00 = 50% of the residual, 7 pairs" in repr(made())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    vector = made().vector.clone()
    vector[1, 2] = value
    with pytest.raises(StarError, match="NaN or infinite"):
        made(vector=vector)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 3), (2, 3, 1)])
def test_a_vector_needs_a_row_per_position(shape: tuple[int, ...]) -> None:
    with pytest.raises(StarError, match="does not fit 2 positions"):
        made(vector=torch.ones(shape))


def test_a_random_vector_has_the_rows_norms_and_a_direction_by_seed() -> None:
    vector = made(vector=torch.cat([made().vector, torch.zeros(2, 61)], dim=1))
    one, again, other = vector.random_like(1), vector.random_like(1), vector.random_like(2)
    assert torch.equal(one.vector, again.vector)
    for random in (one, other):
        torch.testing.assert_close(random.vector.norm(dim=-1), torch.tensor([5.0, 13.0]))
        assert dataclasses.replace(random, vector=vector.vector, method="located") == vector
        assert random.method != "located"
    rows = torch.cat([vector.vector, one.vector, other.vector])
    cosine = torch.corrcoef(rows) - torch.eye(6)
    assert cosine.abs().max() < 0.6  # independent directions in 64 dimensions: standard deviation 1/8


def test_a_wrong_layer_moves_nothing_but_the_layer() -> None:
    for vector in (made(), made(locus=Locus("blocks.11.attn.hook_z", (-3, -1), 2))):
        moved = vector.at_layer(7)
        assert moved.locus.layer == 7
        assert dataclasses.replace(moved, locus=vector.locus) == vector
        kind = vector.locus.hook_point.split(".", 2)[2]
        assert moved.locus == Locus(f"blocks.7.{kind}", (-3, -1), vector.locus.head)


# Saving and loading.


@pytest.mark.parametrize("locus", [LOCI[2], LOCI[5]], ids=str)
def test_a_vector_comes_back_from_its_file_unchanged(tiny: HookedTransformer, tmp_path: Path, locus: Locus) -> None:
    vector = extract_vector(tiny, unequal_pairs(), locus)
    vector.save(tmp_path / "vector.safetensors")
    back = SteeringVector.load(tmp_path / "vector.safetensors", tiny)
    assert torch.equal(back.vector, vector.vector)
    assert back.vector.dtype == vector.vector.dtype
    for field in dataclasses.fields(SteeringVector):
        if field.name != "vector":
            saved, read = getattr(vector, field.name), getattr(back, field.name)
            assert (read, type(read)) == (saved, type(saved)), field.name
    assert back.locus.positions == locus.positions


def test_a_vector_of_another_model_is_refused(
    tiny: HookedTransformer, write_llama: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "vector.safetensors"
    extract_vector(tiny, unequal_pairs(), LOCI[2]).save(path)
    other = star.load_model(str(write_llama(seed=5)))
    with pytest.raises(StarError, match=r"extracted from .* not from"):
        SteeringVector.load(path, other)
    assert SteeringVector.load(path).n_pairs == 5  # without a model nothing is compared


def test_a_vector_of_another_chat_template_is_refused(
    tiny: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vector.safetensors"
    extract_vector(tiny, unequal_pairs(), LOCI[2]).save(path)
    monkeypatch.setattr(tiny.tokenizer, "chat_template", tiny.tokenizer.chat_template + " ")
    with pytest.raises(StarError, match="another chat template"):
        SteeringVector.load(path, tiny)


def test_a_vector_fits_its_model_in_another_dtype(tiny: HookedTransformer, tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "vector.safetensors"
    extract_vector(tiny, unequal_pairs(), LOCI[2]).save(path)
    SteeringVector.load(path, star.load_model(str(tiny_folder), dtype="bfloat16"))


def test_loading_something_else_says_so(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    text, other = tmp_path / "text.safetensors", tmp_path / "other.safetensors"
    text.write_text("not a vector")
    save_file({"vector": torch.ones(2)}, str(other), metadata={"format": "star_tl attribution 1"})
    os.mkfifo(tmp_path / "pipe")
    said = {
        text: "cannot be read as safetensors",
        tmp_path / "absent.safetensors": "No steering vector at",
        tmp_path: "is a folder",
        tmp_path / "pipe": "is a pipe or a device",
        Path("/dev/zero"): "is a pipe or a device",
        tmp_path / ("n" * 5000): "cannot be read",
        tmp_path / "null\0byte": "cannot be read",
        other: "is no steering vector",
    }
    for path, words in said.items():
        with pytest.raises(StarError, match=words) as failure:
            SteeringVector.load(path)
        assert len(str(failure.value).splitlines()) == 1
        assert len(str(failure.value)) < 500


DAMAGED = {
    "no positions": ({"positions": None}, {}),
    "positions are texts": ({"positions": '["a", "b"]'}, {}),
    "positions are fractions": ({"positions": "[-1.5, -2.0]"}, {}),
    "positions are a number": ({"positions": "-1"}, {}),
    "positions are switches": ({"positions": "[true, false]"}, {}),
    "positions are no JSON": ({"positions": "[-1"}, {}),
    "positions nested deep": ({"positions": "[" * 100_000}, {}),
    "too many positions": ({"positions": "[-3, -2, -1]"}, {}),
    "a huge head": ({"head": "99999999999999999999", "hook_point": "blocks.0.attn.hook_z"}, {}),
    "a head of a text": ({"head": '"1"', "hook_point": "blocks.0.attn.hook_z"}, {}),
    "a huge layer": ({"hook_point": f"blocks.{'9' * 5000}.hook_resid_post"}, {}),
    "no hook point": ({"hook_point": "embed"}, {}),
    "no residual": ({"residual_norm": "0"}, {}),
    "NaN residual": ({"residual_norm": "nan"}, {}),
    "residual of words": ({"residual_norm": "much"}, {}),
    "negative residual": ({"residual_norm": "-1.0"}, {}),
    "no pairs": ({"n_pairs": "0"}, {}),
    "pairs of words": ({"n_pairs": "9" * 5000}, {}),
    "no model": ({"model": None}, {}),
    "another norm": ({"norm": "1.0"}, {}),
    "width 1": ({}, {"vector": torch.ones(2, 1)}),
    "edited": ({}, {"vector": torch.ones(2, 3)}),
    "bool": ({}, {"vector": torch.ones(2, 3, dtype=torch.bool)}),
    "int": ({}, {"vector": torch.ones(2, 3, dtype=torch.int64)}),
    "complex": ({}, {"vector": torch.ones(2, 3, dtype=torch.complex64)}),
    "NaN": ({}, {"vector": torch.full((2, 3), float("nan"))}),
    "flat": ({}, {"vector": torch.ones(6)}),
    "empty": ({}, {"vector": torch.ones(0, 3)}),
    "another name": ({}, {"vectors": torch.ones(2, 3)}),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_or_edited_file_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "vector.safetensors"
    made().save(path)
    assert torch.equal(SteeringVector.load(path).vector, made().vector)
    with safe_open(str(path), framework="pt") as file:
        meta, tensors = file.metadata(), {"vector": file.get_tensor("vector")}
    edits, others = DAMAGED[case]
    save_file(others or tensors, str(path), metadata={k: v for k, v in (meta | edits).items() if v is not None})
    with pytest.raises(StarError) as failure:
        SteeringVector.load(path)
    assert str(path) in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1
    assert len(str(failure.value)) < 500


def test_a_vector_of_another_width_is_refused_with_and_without_its_model(tiny: HookedTransformer) -> None:
    vector = extract_vector(tiny, unequal_pairs(), LOCI[2])
    wide = dataclasses.replace(vector, vector=torch.ones(2, 2 * tiny.cfg.d_model))
    with pytest.raises(StarError, match=r"is of width 64 .* extract it again"):
        wide.check(tiny)
    with pytest.raises(StarError, match="has width 64 and the model 32"):
        star.sample(tiny, ["hi there"], hooks=wide.hooks(), max_new_tokens=2)


def test_of_one_name_it_says_that_the_weights_differ(tiny: HookedTransformer) -> None:
    vector = dataclasses.replace(extract_vector(tiny, unequal_pairs(), LOCI[2]), fingerprint="0" * 16)
    with pytest.raises(StarError, match="from other weights than those of this") as failure:
        vector.check(tiny)
    assert "not from" not in str(failure.value)


def test_saving_makes_missing_folders_and_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "vector.safetensors"
    made().save(path)
    made(trait="other").save(path)
    assert SteeringVector.load(path).trait == "other"
    assert [p.name for p in path.parent.iterdir()] == ["vector.safetensors"]
    (tmp_path / "link").symlink_to(path)
    made(trait="third").save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert SteeringVector.load(path).trait == "third"


@pytest.mark.parametrize("name", ["", "pipe", "file/vector", "n" * 5000, "null\0byte"])
def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    with pytest.raises(StarError, match="name another"):
        made().save(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "pipe"]


# Arithmetic.


def test_vectors_of_one_locus_add_up_and_scale() -> None:
    one, other = made(), made(vector=torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.5]]), trait="calm")
    assert torch.equal((one + other).vector, one.vector + other.vector)
    assert torch.equal((one - other).vector, one.vector - other.vector)
    assert torch.equal((2 * one).vector, 2 * one.vector)
    assert torch.equal((one * 0.5).vector, (one / 2).vector)
    assert torch.equal((-one).vector, -one.vector)
    assert (one + 2 * other).trait == f"{one.trait} + 2 calm"
    assert (one + other).locus == one.locus
    assert (2 * one).hooks(1.0)[1][1].vectors.equal(one.hooks(2.0)[1][1].vectors)
    with pytest.raises(StarError, match="one model at one locus"):
        one + other.at_layer(3)
    with pytest.raises(StarError, match="finite number"):
        float("inf") * one
    for wrong in ("2", None, True, [2]):
        with pytest.raises(TypeError):
            one * wrong  # pyright: ignore
    with pytest.raises(TypeError):
        one + 1  # pyright: ignore


@pytest.mark.parametrize("method", ["located", "reply_mean"])
def test_pairs_that_do_not_fit_at_once_are_read_by_halves(exact: HookedTransformer, method: str) -> None:
    locus = Locus("blocks.1.hook_resid_post")
    expected = extract_vector(exact, unequal_pairs(), locus, method)
    seen: list[int] = []

    def small(activation: Tensor, hook: object) -> None:
        seen.append(len(activation))
        if len(activation) > 2:
            raise torch.OutOfMemoryError("planted")

    with exact.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", small)]), pytest.warns(UserWarning, match="Memory ran out"):
        found = extract_vector(exact, unequal_pairs(), locus, method)
    assert seen[0] > 2
    torch.testing.assert_close(found.vector, expected.vector)


@pytest.mark.parametrize("method", ["located", "reply_mean"])
def test_vectors_of_several_loci_are_those_of_each(demo: HookedTransformer, method: str) -> None:
    pairs = star.load_pairs("politeness")
    loci = [star.Locus(f"blocks.{layer}.hook_resid_post", (-1,)) for layer in (1, 6)]
    loci.append(star.Locus("blocks.3.attn.hook_z", (-2, -1), head=1))
    together = extract_vectors(demo, pairs, loci, method)
    assert [v.locus.hook_point for v in together] == [locus.hook_point for locus in loci]
    for vector, locus in zip(together, loci, strict=True):
        alone = star.extract_vector(demo, pairs, locus, method)
        torch.testing.assert_close(vector.vector, alone.vector)
        assert vector.residual_norm == pytest.approx(alone.residual_norm)


def test_the_huggingface_hook_adds_what_ours_adds(exact: HookedTransformer, tiny_folder: Path) -> None:
    hf, ids = hf_reference.load(tiny_folder).double(), [1, 5, 9, 7, 3]
    vector = hf_reference.of(
        torch.randn(2, exact.cfg.d_model, dtype=torch.float64).float(), Locus("blocks.1.hook_resid_post", (-2, -1))
    )
    handle = hf.model.layers[vector.locus.layer].register_forward_hook(vector.to_hf_hook(1.5))
    theirs = hf(torch.tensor([ids])).logits
    handle.remove()
    ours = exact.run_with_hooks(torch.tensor([ids]), fwd_hooks=vector.hooks(1.5, "all"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(hf(torch.tensor([ids])).logits, theirs), "and does nothing once removed"
    elsewhere = hf_reference.of(torch.randn(1, exact.cfg.d_model), Locus("blocks.1.hook_attn_out"))
    with pytest.raises(StarError, match=r"blocks\.1\.hook_resid_post"):
        elsewhere.to_hf_hook()


@pytest.mark.parametrize(
    "locus",
    [
        Locus("blocks.1.hook_resid_post", (-3, -1)),
        Locus("blocks.0.hook_attn_out"),
        Locus("blocks.1.attn.hook_z", (-2,), 1),
    ],
)
def test_a_survey_holds_the_vectors_that_extraction_makes_one_by_one(exact: HookedTransformer, locus: Locus) -> None:
    pairs = unequal_pairs()
    surveyed = survey(exact, pairs, window=3, batch_size=2)
    one = extract_vector(exact, pairs, locus)
    assert_close(surveyed.vector(locus).vector.double(), one.vector.double())
    assert surveyed.vector(locus).residual_norm == pytest.approx(one.residual_norm)
    with pytest.raises(StarError, match="not surveyed"):
        surveyed.vector(Locus(locus.hook_point, (-4,), locus.head))


def test_a_discriminant_of_what_does_not_vary_is_the_mean_difference(tiny: HookedTransformer) -> None:
    """One context with several replies: at prompt tokens all pairs are the same."""
    pairs = make_pairs(*(pair(f"p{i}", "I lost my job.", f"I am so sorry{'!' * i}", "So what.") for i in range(4)))
    locus = Locus("blocks.1.hook_resid_post", (-2, -1))
    probe, mean = (extract_vector(tiny, pairs, locus, method=method) for method in ("probe", "located"))
    torch.testing.assert_close(probe.vector, mean.vector)


def test_what_was_saved_in_the_home_folder_is_read_from_there(tiny: HookedTransformer, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    vector, pairs = hf_reference.steering_vector(), unequal_pairs()
    vector.save("~/v.safetensors")
    pairs.save("~/pairs.jsonl")
    assert (tmp_path / "v.safetensors").is_file()
    torch.testing.assert_close(SteeringVector.load("~/v.safetensors").vector, vector.vector)
    assert star.load_pairs("~/pairs.jsonl") == pairs
