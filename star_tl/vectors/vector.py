"""A steering vector that describes itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.data.chat import template_hash
from star_tl.errors import StarError, check_kind, check_number, check_text, check_whole, quoted
from star_tl.files import load_tensors, reading, save_tensors
from star_tl.locus import Locus, NamedHook
from star_tl.models.backend import Model, tokenizer_of
from star_tl.steering.hooks import injection_hooks

FORMAT = "star_tl vector 1"
_TEXTS = ("trait", "method", "model", "fingerprint", "template")


@dataclass(frozen=True)
class SteeringVector:
    """Rows of a vector for the positions of its locus, with what is needed to use it rightly.

    ``residual_norm`` is the mean norm of the corrupted activation at the locus: the strength that is
    1 as the natural difference is ``fraction`` of it.
    """

    vector: Float[Tensor, "position d"]
    locus: Locus
    trait: str
    method: str
    residual_norm: float
    n_pairs: int
    model: str
    fingerprint: str
    template: str

    def __post_init__(self) -> None:
        if not isinstance(self.vector, Tensor) or not self.vector.is_floating_point():
            kind = str(getattr(self.vector, "dtype", type(self.vector).__name__)).removeprefix("torch.")
            raise StarError(
                f"A steering vector is made of {kind}: give floating-point numbers, as vector.float() does."
            )
        if self.vector.layout != torch.strided or self.vector.is_meta:
            raise StarError("A steering vector is sparse or on the meta device: give a dense tensor of numbers.")
        # Without a graph, and on the processor: controls, files and sums with other vectors are made there.
        if self.vector.requires_grad or self.vector.device.type != "cpu":
            object.__setattr__(self, "vector", self.vector.detach().cpu())
        check_kind(self.locus, Locus, 'a Locus, such as attr.top_locus() or Locus("blocks.5.hook_resid_post")')
        shape = tuple(self.vector.shape)
        if len(shape) != 2 or shape[0] != len(self.locus.positions) or shape[1] < 2:
            raise StarError(
                f"A vector of shape {shape} does not fit {len(self.locus.positions)} positions: give a row for each."
            )
        for name in _TEXTS:
            check_text(getattr(self, name), f"{name} of a steering vector")
        remedy = "give the mean norm at the locus, above 0"
        check_number(self.residual_norm, "residual_norm", lambda x: math.isfinite(x) and x > 0, remedy)
        check_whole(self.n_pairs, "n_pairs")
        if not bool(torch.isfinite(self.vector).all()):
            raise StarError("The steering vector holds NaN or infinite values: extract it again.")

    def __add__(self, other: SteeringVector) -> SteeringVector:
        """Both at once. Raises StarError unless they are of one model and at one locus."""
        if not isinstance(other, SteeringVector):
            return NotImplemented
        check_alike(self, other)
        name = f"{self.trait} + {other.trait}"
        return replace(self, vector=self.vector + other.vector, trait=name, method="combined")

    def __mul__(self, factor: float) -> SteeringVector:
        """As many times the vector; strength 1 then is ``factor`` times what it was."""
        if isinstance(factor, bool) or not isinstance(factor, Real):
            return NotImplemented
        return replace(self, vector=self.scaled(factor), trait=f"{float(factor):g} {self.trait}")

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> SteeringVector:
        if isinstance(factor, bool) or not isinstance(factor, Real) or not factor:
            return NotImplemented
        return self * (1 / factor)

    def __neg__(self) -> SteeringVector:
        return self * -1

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self + -other if isinstance(other, SteeringVector) else NotImplemented

    @property
    def norm(self) -> float:
        """Mean norm of the vector's rows: strength 1 in raw units."""
        return float(self.vector.norm(dim=-1).mean())

    @property
    def fraction(self) -> float:
        """Strength 1 as a fraction of the residual norm at the locus."""
        return self.norm / self.residual_norm

    def hooks(
        self,
        strength: float = 1.0,
        positions: str | Sequence[int] | None = None,
        prompt_length: int | None = None,
    ) -> list[NamedHook]:
        """``[(name, fn)]`` for TransformerLens; see :func:`star_tl.steering.hooks.injection_hooks`."""
        if prompt_length is not None:
            check_whole(prompt_length, "prompt_length")
        return injection_hooks(self.scaled(strength), self.locus, positions, prompt_length)

    def to_hf_hook(self, strength: float = 1.0) -> Callable[..., object]:
        """A forward hook for the HuggingFace model that these weights came from; it adds at every token.

            layer = hf_model.model.layers[vector.locus.layer]  # of a Llama; GPT-2 has transformer.h
            handle = layer.register_forward_hook(vector.to_hf_hook(2.0))
            hf_model.generate(...); handle.remove()

        What is added is the mean of the vector's rows, as ``positions="all"`` does. For the located positions
        ``vector.export("snippet", path)`` writes a program.

        Raises:
            StarError: a place that is not a layer's output (``resid_post``), which no module of HuggingFace gives.
        """
        if not self.locus.hook_point.endswith("hook_resid_post"):
            raise StarError(
                f"A forward hook of a layer sees its output, and this vector is of {self.locus.hook_point}: extract it "
                f"at blocks.{self.locus.layer}.hook_resid_post."
            )
        added = self.scaled(strength).mean(0)

        def hook(module: object, args: object, output: Any) -> object:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden + added.to(hidden.device, hidden.dtype)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    def scaled(self, strength: float) -> Float[Tensor, "position d"]:
        """What is added at ``strength``. Raises StarError unless it is a finite number."""
        remedy = "give a finite number, 1 is the natural difference"
        check_number(strength, "strength", math.isfinite, remedy)
        added = self.vector * float(strength)
        check_number(strength, "strength", lambda _: bool(added.isfinite().all()), remedy)
        return added

    def random_like(self, seed: int = 0) -> SteeringVector:
        """A random direction of the same norm at the same place: the control."""
        check_whole(seed, "seed", least=None)
        noise = torch.randn(self.vector.shape, generator=torch.Generator().manual_seed(int(seed)))
        noise *= self.vector.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
        return replace(self, vector=noise, method=f"random, seed {seed}")

    def at_layer(self, layer: int) -> SteeringVector:
        """The same vector at the same positions of another layer: a wrong locus, as a control."""
        check_whole(layer, "layer", least=0)
        prefix, _, kind = self.locus.hook_point.partition(f".{self.locus.layer}.")
        return replace(self, locus=replace(self.locus, hook_point=f"{prefix}.{layer}.{kind}"))

    def check(self, model: Model) -> None:
        """Raise StarError unless the vector was extracted from this model."""
        from star_tl.models.load import fingerprint

        if fingerprint(model) != self.fingerprint:
            ours, theirs = quoted(self.model), quoted(str(model.cfg.model_name))
            other = (
                f"from {ours}, not from {theirs}" if ours != theirs else f"from other weights than those of this {ours}"
            )
            raise StarError(f"This vector was extracted {other}: extract it again.")
        cfg, locus = model.cfg, self.locus
        width = cfg.d_model if locus.head is None else cfg.d_head
        if locus.layer >= cfg.n_layers or (locus.head or 0) >= cfg.n_heads or self.vector.shape[1] != width:
            raise StarError(
                f"This vector is of width {self.vector.shape[1]} at {locus}, and the model has {cfg.n_layers} layers "
                f"of {cfg.n_heads} heads and width {width} there: extract it again."
            )
        if model.tokenizer is not None and template_hash(tokenizer_of(model)) != self.template:
            raise StarError(
                "This vector was extracted under another chat template, where positions mean other tokens: "
                "extract it again."
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file whose metadata says all that :meth:`load` needs; missing folders are made.

        Raises:
            StarError: the file cannot be written.
        """
        from star_tl.version import __version__

        meta = {
            "format": FORMAT,
            "hook_point": self.locus.hook_point,
            "positions": json.dumps(self.locus.positions),
            "head": json.dumps(self.locus.head),
            "trait": self.trait,
            "method": self.method,
            "residual_norm": repr(self.residual_norm),
            "norm": repr(self.norm),
            "n_pairs": str(self.n_pairs),
            "model": self.model,
            "fingerprint": self.fingerprint,
            "template": self.template,
            "star_tl": __version__,
        }
        save_tensors(path, {"vector": self.vector}, meta)

    def export(
        self,
        format: str,
        path: str | Path,
        strength: float = 1.0,
        positions: str | Sequence[int] | None = None,
        model: str | Path | None = None,
    ) -> None:
        """Write the vector as another program reads it, and a recipe card beside it.

        Args:
            format: a key of :data:`star_tl.vectors.export.FORMATS`.
            path: the file, or for ``huggingface`` the new folder.
            strength: what is written; the other program can scale it further.
            positions: as in :meth:`hooks`; ``"all"`` is what most programs can hold.
            model: for ``huggingface``, whose weights to write, by name or folder; default the vector's own. They are
                read only as they are written: whether they are the vector's own, :meth:`check` says of a loaded model.

        Raises:
            StarError: the format cannot hold the place or the positions, or ``path`` cannot be written to.
        """
        from star_tl.vectors.export import Request, export

        export(Request(self, strength, positions, model), format, path)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> SteeringVector:
        """Read a saved vector; with ``model``, check that it belongs to it.

        Raises:
            StarError: not a vector file, a damaged or edited one, or a vector for another model or chat template.
        """
        meta, tensors = load_tensors(path, "steering vector", FORMAT, ("vector",))
        with reading(path):
            loaded = cls(
                vector=tensors["vector"],
                locus=Locus(meta["hook_point"], tuple(json.loads(meta["positions"])), json.loads(meta["head"])),
                residual_norm=float(meta["residual_norm"]),
                n_pairs=int(meta["n_pairs"]),
                **{name: meta[name] for name in _TEXTS},
            )
            if not math.isclose(loaded.norm, float(meta["norm"]), rel_tol=1e-3):
                raise StarError("its numbers are not those that were saved: extract it again.")
        if model is not None:
            loaded.check(model)
        return loaded

    def _repr_html_(self) -> str:
        from star_tl.view.cards import card

        return card(
            f"Steering vector: {self.trait.replace('_', ' ')}",
            {
                "locus": self.locus,
                "method": f"{self.method}, {self.n_pairs} pairs",
                "strength 1": f"norm {self.norm:.2f}, {self.fraction:.0%} of the residual norm there",
                "model": self.model,
                "use": "vector.hooks(strength=1.0)",
            },
        )

    def __repr__(self) -> str:
        return (
            f"SteeringVector({self.trait}, {self.method}, {self.locus}, norm {self.norm:.2f} = "
            f"{self.fraction:.0%} of the residual, {self.n_pairs} pairs, {self.model})"
        )


def check_alike(one: SteeringVector, other: SteeringVector) -> None:
    """Raises StarError unless two vectors are of one model and at one locus."""
    for vector in (one, other):
        check_kind(vector, SteeringVector, "a SteeringVector")
    if (one.fingerprint, one.locus) != (other.fingerprint, other.locus):
        raise StarError(
            f"The vectors are of {one.model!r} at {one.locus} and of {other.model!r} at {other.locus}: "
            "extract them from one model at one locus."
        )
