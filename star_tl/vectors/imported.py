"""Vectors that other libraries made."""

from __future__ import annotations

from star_tl.data.chat import template_hash
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError, check_kind, check_whole
from star_tl.locus import Locus, hook_name
from star_tl.models.backend import MODELS, Model, tokenizer_of
from star_tl.models.load import fingerprint
from star_tl.vectors.activations import in_prompts
from star_tl.vectors.export.steering_vectors import LAYER_TYPES, read_layers
from star_tl.vectors.vector import SteeringVector


def from_steering_vectors(source: object, model: Model, pairs: Pairs, layer: int | None = None) -> SteeringVector:
    """A vector of the package steering-vectors, which is not needed for it; meant for ``positions="all"``.

    Args:
        source: a ``steering_vectors.SteeringVector``, or a safetensors file whose tensors are named by their layers.
        model: the model that it was made for.
        pairs: of its trait; they give the norm of activations there, not the vector.
        layer: which of its layers; may be left out where there is one.

    Raises:
        StarError: no such vector, several layers of which none is named, or another model's width.
    """
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(pairs, Pairs, "pairs that load_pairs returns")
    if layer is not None:
        check_whole(layer, "layer", least=0)
    layers, kind = read_layers(source)
    if layer is None and len(layers) == 1:
        (layer,) = layers
    if layer is None or layer not in layers:
        raise StarError(f"It has vectors at the layers {', '.join(map(str, sorted(layers)))}: name one as layer.")
    row = layers[layer]
    if len(row) != model.cfg.d_model or layer >= model.cfg.n_layers:
        raise StarError(
            f"A vector of width {len(row)} at layer {layer} does not fit {model.cfg.model_name!r}: load its own model."
        )
    locus = Locus(hook_name(LAYER_TYPES[kind], layer))
    return SteeringVector(
        vector=row[None],
        locus=locus,
        trait=pairs.trait.name,
        method="steering-vectors",
        residual_norm=in_prompts(model, pairs.extraction, [locus], batch_size=16)[0].corrupted_norm,
        n_pairs=len(pairs.extraction),
        model=str(model.cfg.model_name),
        fingerprint=fingerprint(model),
        template=template_hash(tokenizer_of(model)),
    )
