"""What the two kinds of model do each in its own way: hooks in force, a cache that goes on, residual stream and logits.

Everything else in star_tl asks here, and names hook points as TransformerLens does. Where a model is spread over
several devices, what goes in and comes out here lies on the first; only hooks see a layer's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import cast
from weakref import WeakKeyDictionary

from jaxtyping import Float, Int
from torch import Tensor, nn

from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError, check_kind
from star_tl.locus import NamedHook
from star_tl.models import bridge
from star_tl.models.lens import (
    HookedTransformer,
    TransformerBridge,
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
)
from star_tl.models.product import product, say_slow

MODELS = (HookedTransformer, TransformerBridge)
Model = HookedTransformer | TransformerBridge
Cache = TransformerLensKeyValueCache | bridge.Cache


_TURNS: WeakKeyDictionary[Model, RLock] = WeakKeyDictionary()


def turn(model: Model) -> RLock:
    """A lock for the time in which a thread runs the model's own forward: hooks are on the model, for all threads."""
    return _TURNS.setdefault(model, RLock())


def check_hook_point(model: Model, name: str, head: int | None = None) -> None:
    """Raises StarError where the model has no such hook point, or no such head."""
    if name not in model.hook_dict:
        raise StarError(f"The model has no hook point {name!r}: it has {model.cfg.n_layers} layers.")
    if head is not None and not 0 <= head < model.cfg.n_heads:
        raise StarError(f"The model has no head {head}: it has {model.cfg.n_heads} per layer.")


def check_differentiable(model: Model) -> None:
    """Raises StarError where nothing could have a gradient."""
    if any(t.is_inference() and t.is_floating_point() for t in (*model.parameters(), *model.buffers())):
        raise StarError(
            "The model was loaded, or lengthened its tables, under torch.inference_mode(), where nothing has a "
            "gradient: load it again outside."
        )


def tokenizer_of(model: Model) -> Tokenizer:
    """The tokenizer that ``load_model`` saw to; TransformerLens allows a model to have none."""
    if not hasattr(model, "tokenizer"):
        check_kind(model, MODELS, "a model that load_model returns")
    return cast(Tokenizer, model.tokenizer)


@contextmanager
def attached(model: Model, hooks: Sequence[NamedHook]) -> Iterator[None]:
    """Forward hooks for the time of the context, during which other threads wait for their turn."""
    with turn(model):
        if isinstance(model, TransformerBridge):
            own = bridge.attached(model, hooks)
        else:
            _name_replaced(model)
            own = model.hooks(fwd_hooks=list(hooks))
        with own:
            yield


def _name_replaced(model: HookedTransformer) -> None:
    """TransformerLens finds hook points by a list made once: a block that was put in later is not on it."""
    for i, block in enumerate(model.blocks):
        names = {"": block, ".attn": block.attn, ".mlp": getattr(block, "mlp", None)}
        if any(model.mod_dict.get(f"blocks.{i}{name}") is not module for name, module in names.items()):
            model.setup()
            return


def empty_cache(model: Model, rows: int) -> Cache:
    """Keys and values of nothing, for so many rows."""
    if isinstance(model, TransformerBridge):
        return bridge.empty_cache(model, rows)
    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, rows)


def taken(cache: Cache, rows: Int[Tensor, " row"]) -> Cache:
    """A cache of these rows of another, in this order; gradients flow back to that one."""
    if isinstance(cache, bridge.Cache):
        return cache.taken(rows)
    return TransformerLensKeyValueCache(entries_taken(cache.entries, rows), cache.previous_attention_mask[rows])


def entries_taken(
    entries: Sequence[TransformerLensKeyValueCacheEntry], rows: Int[Tensor, " row"]
) -> list[TransformerLensKeyValueCacheEntry]:
    """Keys and values of these rows, layer by layer."""

    def at(table: Tensor) -> Tensor:
        return table[rows.to(table.device)]

    return [TransformerLensKeyValueCacheEntry(at(e.past_keys), at(e.past_values)) for e in entries]


def residual_stream(
    model: Model,
    tokens: Int[Tensor, "row position"],
    mask: Tensor,
    cache: Cache | None = None,
    layers: int | None = None,
) -> Float[Tensor, "row position d"]:
    """The residual stream at ``tokens``, which follow those of ``cache`` and are added to it.

    Args:
        model: of either kind.
        tokens: of every row the next ones.
        mask: of the shape of ``tokens``, 0 at padding.
        cache: from :func:`empty_cache` or :func:`taken`.
        layers: how many layers to run; default all.
    """
    if str(model.cfg.device).startswith("cpu"):
        say_slow(model.cfg.dtype)
    with turn(model):
        if isinstance(model, TransformerBridge):
            assert not isinstance(cache, TransformerLensKeyValueCache)
            return bridge.residual_stream(model, tokens, mask, cache, layers)
        assert not isinstance(cache, bridge.Cache)
        stop = model.cfg.n_layers if layers is None else layers
        return model(tokens, attention_mask=mask.int(), past_kv_cache=cache, stop_at_layer=stop).to(model.cfg.device)


def unembed(model: Model, residual: Float[Tensor, "row position d"]) -> Float[Tensor, "row position vocab"]:
    """Logits of the last layer's residual stream as the model's own forward makes them, in float32 at least."""
    with turn(model):
        if isinstance(model, TransformerBridge):
            logits = bridge.unembed(model, residual)
        else:
            residual = residual.to(model.unembed.W_U.device)
            residual = model.ln_final(residual) if model.cfg.normalization_type else residual
            logits = _unembedded(model.unembed, residual)
            cap = model.cfg.output_logits_soft_cap
            if cap > 0:
                logits = cap * (logits / cap).tanh()
            logits = logits.to(model.cfg.device)
    return logits.float() if logits.dtype.itemsize < 8 else logits


def _unembedded(unembed: nn.Module, residual: Float[Tensor, "row position d"]) -> Float[Tensor, "row position vocab"]:
    """What the module makes of it; by the faster product where it is TransformerLens's own and nobody listens."""
    listens = any(module._forward_hooks for module in unembed.modules())
    if type(unembed).__name__ != "Unembed" or listens or "forward" in vars(unembed):
        return unembed(residual)
    weight, bias = unembed.W_U, unembed.b_U
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return product(residual, weight.T, bias)  # whether it is zero is not asked: that would wait for a GPU
