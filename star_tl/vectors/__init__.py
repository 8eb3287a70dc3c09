"""Steering vectors: what they hold, and the ways to extract them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from star_tl.data.chat import render, template_hash
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError, check_kind, check_name, check_whole
from star_tl.locus import Locus
from star_tl.models.backend import MODELS, Model, check_hook_point, tokenizer_of
from star_tl.vectors.activations import in_prompts, in_replies
from star_tl.vectors.algebra import combine, project_off
from star_tl.vectors.methods import METHODS, VectorMethod
from star_tl.vectors.vector import SteeringVector

__all__ = ["METHODS", "SteeringVector", "VectorMethod", "combine", "extract_vector", "extract_vectors", "project_off"]


def check_extraction(model: Model, pairs: Pairs, loci: Sequence[Locus], method: str) -> None:
    """What :func:`extract_vector` raises at one of these loci, before anything is computed."""
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(pairs, Pairs, "pairs that load_pairs returns")
    check_name(method, METHODS, "vector method")
    for locus in loci:
        check_kind(locus, Locus, 'a Locus, such as attr.top_locus() or Locus("blocks.5.hook_resid_post")')
    if len(pairs.extraction) < METHODS[method].fewest_pairs:
        raise StarError(
            f"The vector method {method!r} needs at least {METHODS[method].fewest_pairs} pairs: add pairs, or use the "
            "method 'located'."
        )
    for locus in loci:
        check_hook_point(model, locus.hook_point, locus.head)
    first = min((min(locus.positions) for locus in loci), default=-1)
    if METHODS[method].reads == "prompt" and first < -1:
        sides = (side(pair) for pair in pairs.extraction for side in (pairs.clean_prompt, pairs.corrupted_prompt))
        if min(len(render(tokenizer_of(model), prompt)) for prompt in sides) < -first:
            raise StarError(f"A prompt is shorter than the locus's position {first}: use positions nearer to its end.")


def extract_vector(
    model: Model, pairs: Pairs, locus: Locus, method: str = "located", batch_size: int = 16
) -> SteeringVector:
    """The steering vector of ``pairs`` (extraction split) at ``locus``.

    Args:
        model: the model that the vector will steer.
        pairs: contrastive pairs.
        locus: where, e.g. ``attr.top_locus()``.
        method: a key of METHODS: {methods}.
        batch_size: pairs per forward pass.

    Raises:
        StarError: unknown method, batch_size below 1, a locus that the model does not have, a prompt that is shorter
            than its positions need, or too few pairs for the method.
    """
    return extract_vectors(model, pairs, [locus], method, batch_size)[0]


def extract_vectors(
    model: Model, pairs: Pairs, loci: Sequence[Locus], method: str = "located", batch_size: int = 16
) -> list[SteeringVector]:
    """The vectors of several loci from the same passes. Arguments and errors as in :func:`extract_vector`."""
    from star_tl.models.load import fingerprint

    check_whole(batch_size, "batch_size")
    if not loci:
        raise StarError("There are no loci: name at least one.")
    check_extraction(model, pairs, loci, method)
    chosen, pairs = METHODS[method], pairs.extraction
    if chosen.reads == "reply":
        loci = [replace(locus, positions=(-1,)) for locus in loci]
    activations = (in_prompts if chosen.reads == "prompt" else in_replies)(model, pairs, loci, batch_size)
    return [
        SteeringVector(
            vector=chosen.rows(found.clean, found.corrupted).float(),
            locus=locus,
            trait=pairs.trait.name,
            method=method,
            residual_norm=found.corrupted_norm,
            n_pairs=len(pairs),
            model=str(model.cfg.model_name),
            fingerprint=fingerprint(model),
            template=template_hash(tokenizer_of(model)),
        )
        for locus, found in zip(loci, activations, strict=True)
    ]


extract_vector.__doc__ = (extract_vector.__doc__ or "").replace("{methods}", "; ".join(map(str, METHODS.values())))
