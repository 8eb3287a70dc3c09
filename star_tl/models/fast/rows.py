"""The Llama family's decode step over rows that stand at columns of their own, which come and go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from star_tl.locus import NamedHook
from star_tl.models.backend import unembed
from star_tl.models.fast.decode import LlamaPass, attend
from star_tl.models.fast.forward import listeners_of, resolve
from star_tl.models.fast.single_row import DTYPES, SingleRowStep

_GRAIN = 64  # columns by which a cache grows


class LlamaRows:
    """Keys and values of rows, each from column 0 on and ``lengths`` columns long, in a cache that fits them."""

    def __init__(self, first: LlamaPass, budget: int) -> None:
        """The rows of a pass that has read their prompts; of all rows together at most ``budget`` columns are spare."""
        layers = first.layers
        self.budget = budget
        self.model, self.forward = layers.model, layers.forward
        self.lengths: list[int] = []
        shape = list(layers.cache.shape)
        shape[2] = shape[4] = 0
        self._take(layers.cache.new_zeros(shape))
        self.admit(first)

    @torch.no_grad()
    def admit(self, passed: LlamaPass) -> None:
        """Take the rows of a pass over prompts, behind those that there are."""
        read, pads = passed.position.read, passed.layers.pads.tolist()
        self._fit(len(self.lengths) + len(pads), read + 1)
        for row, padding in enumerate(pads):
            place = len(self.lengths)
            # What a row leaves behind may be NaN, and masked it would still be 0 · NaN.
            self.cache[:, :, place] = 0.0
            self.cache[:, :, place, :, : read - padding] = passed.layers.cache[:, :, row, :, padding:read]
            self.lengths.append(read - padding)

    @torch.no_grad()
    def remove(self, row: int) -> None:
        """Let a row go; the last one takes its place."""
        last = self.lengths.pop()
        if row < len(self.lengths):
            self.lengths[row] = last
            self.cache[:, :, row] = self.cache[:, :, len(self.lengths)]

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, " row"], hooks: Sequence[NamedHook]) -> Float[Tensor, "row vocab"]:
        """Logits after the rows' next tokens."""
        n, device = len(self.lengths), self.cache.device
        stop = max(self.lengths) + 1
        self._fit(n, stop)
        listeners = listeners_of(self.model, resolve(self.model, hooks)) or {}
        columns = torch.tensor(self.lengths, device=device)
        self.lengths = [length + 1 for length in self.lengths]
        if n == 1 and device.type == "cpu" and self.cache.dtype in DTYPES:
            if self.single is None:
                self.single = SingleRowStep(self.model, self.forward, self.cache[:, :, :1], (self.cos, self.sin))
            return self.single(int(tokens), 0, stop - 1, listeners)
        rows = torch.arange(n, device=device)
        mask = None
        if len(set(self.lengths)) > 1:
            mask = (torch.arange(stop, device=device) <= columns[:, None])[:, None, None]
            if self.cache.dtype == torch.float32:  # once for all layers what each would make of it
                mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)

        def attend_all(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = (kept[:n, :, :stop] for kept in self.cache[layer])
            keys[rows, :, columns] = k[:, :, 0]
            values[rows, :, columns] = v[:, :, 0]
            return attend(q, keys, values, mask, False)

        embedded = F.embedding(tokens[:, None], self.model.embed.W_E)
        rotation = self.cos[columns][:, None, None], self.sin[columns][:, None, None]
        return unembed(self.model, self.forward(embedded, rotation, attend_all, listeners))[:, 0]

    def _fit(self, rows: int, columns: int) -> None:
        """Make room for so many rows and columns; what rows that are gone needed is given back then."""
        held, room = self.cache.shape[2], self.cache.shape[4]
        if rows <= held and columns <= room:
            return
        filled = max(self.lengths, default=0)
        shape = list(self.cache.shape)
        shape[4] = -(-max(columns, filled) // _GRAIN) * _GRAIN
        spare = min(held if rows <= held else 2 * held, self.budget // shape[4])
        shape[2] = max(rows, spare)
        cache, n = self.cache.new_zeros(shape), len(self.lengths)
        cache[:, :, :n, :, :filled] = self.cache[:, :, :n, :, :filled]
        self._take(cache)

    def _take(self, cache: Float[Tensor, "layer 2 place kv_head room d_head"]) -> None:
        self.cache = cache
        self.cos, self.sin = self.forward.rotation(cache.shape[4], cache.device)
        self.single: SingleRowStep | None = None
