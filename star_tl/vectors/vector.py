"""A steering vector that describes itself."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.errors import StarError
from star_tl.files import save_tensors
from star_tl.locus import Locus, NamedHook
from star_tl.models.backend import Model
from star_tl.steering.hooks import injection_hooks

FORMAT = "star_tl vector 1"


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
        if self.vector.ndim != 2 or self.vector.shape[0] != len(self.locus.positions):
            raise StarError(
                f"A vector of shape {tuple(self.vector.shape)} does not fit {len(self.locus.positions)} positions."
            )
        if not bool(torch.isfinite(self.vector).all()):
            raise StarError("The steering vector holds NaN or infinite values.")

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
        return injection_hooks(self.scaled(strength), self.locus, positions, prompt_length)

    def scaled(self, strength: float) -> Float[Tensor, "position d"]:
        """What is added at ``strength``. Raises StarError unless it is a finite number."""
        if isinstance(strength, bool) or not isinstance(strength, Real) or not math.isfinite(strength):
            raise StarError(f"strength is {strength!r}: give a finite number, 1 is the natural difference.")
        return self.vector * float(strength)

    def random_like(self, seed: int = 0) -> SteeringVector:
        """A random direction of the same norm at the same place: the control."""
        noise = torch.randn(self.vector.shape, generator=torch.Generator().manual_seed(seed))
        noise *= self.vector.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
        return replace(self, vector=noise, method=f"random, seed {seed}")

    def at_layer(self, layer: int) -> SteeringVector:
        """The same vector at the same positions of another layer: a wrong locus, as a control."""
        prefix, _, kind = self.locus.hook_point.partition(f".{self.locus.layer}.")
        return replace(self, locus=replace(self.locus, hook_point=f"{prefix}.{layer}.{kind}"))

    def check(self, model: Model) -> None:
        """Raise StarError unless the vector was extracted from this model."""
        from star_tl.data.chat import template_hash
        from star_tl.models.load import fingerprint

        if fingerprint(model) != self.fingerprint:
            raise StarError(
                f"This vector was extracted from {self.model!r}, not from {model.cfg.model_name!r}: extract it again."
            )
        if model.tokenizer is not None and template_hash(model.tokenizer) != self.template:
            raise StarError(
                "This vector was extracted under another chat template, where positions mean other tokens: "
                "extract it again."
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file whose metadata says all that :meth:`load` needs."""
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

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> SteeringVector:
        """Read a saved vector; with ``model``, check that it belongs to it.

        Raises:
            StarError: not a vector file, or a vector for another model or chat template.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("format") != FORMAT:
                    raise StarError(f"{path} is not a steering vector of star_tl.")
                tensor = file.get_tensor("vector")
        except (SafetensorError, OSError) as error:
            raise StarError(f"{path} cannot be read as safetensors ({error}).") from None
        loaded = cls(
            vector=tensor,
            locus=Locus(meta["hook_point"], tuple(json.loads(meta["positions"])), json.loads(meta["head"])),
            trait=meta["trait"],
            method=meta["method"],
            residual_norm=float(meta["residual_norm"]),
            n_pairs=int(meta["n_pairs"]),
            model=meta["model"],
            fingerprint=meta["fingerprint"],
            template=meta["template"],
        )
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
