"""Models as a TransformerBridge: HuggingFace's own modules with TransformerLens's hook points between them.

A bridge knows many architectures that HookedTransformer does not, and computes what HuggingFace computes. What it
does in another way than HookedTransformer is made good here, so that nothing else in star_tl need know:

* its ``hooks`` looks every name up anew for every hook, and passes over names that it does not know;
* its ``hook_resid_mid`` is the input of the MLP's norm: what is written there never reaches the residual stream;
* Granite's scaled contributions are no part of the graph while nobody listens to their gradients;
* it keeps no TransformerLens cache, and a cache of HuggingFace's own choice forgets what a sliding window leaves
  behind, so that the number of keys no longer says where a chunk stands.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.block import ScaledResidualBlockBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import DynamicCache

from star_tl.errors import StarError, nearest
from star_tl.locus import HookFunction, NamedHook
from star_tl.models.checkpoint import Checkpoint
from star_tl.models.lens import TransformerBridge
from star_tl.models.transformers_folder import CLOSE, difference, probe

# What every layer must have, in the order in which it must come: a clock reads the scores before anything is added.
NEEDED = ("hook_resid_pre", "attn.hook_attn_scores", "attn.hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
# Weights in the order in which a fingerprint reads them.
_KNOWN = {
    "attn": ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"),
    "mlp": ("W_gate", "W_in", "W_out", "b_in", "b_out"),
}
_PADDING = 8  # columns, in the check of padded rows


def knows(architecture: str) -> bool:
    """Whether TransformerBridge has an adapter for it."""
    return architecture in SUPPORTED_ARCHITECTURES


def load_bridge(
    checkpoint: Checkpoint, architecture: str, dtype: torch.dtype, device: str, first_n_layers: int | None = None
) -> TransformerBridge:
    """The TransformerBridge of a checkpoint, without its tokenizer. Weights are held once.

    Args:
        checkpoint: where settings and weights are read.
        architecture: the config's, such as ``"OlmoForCausalLM"``.
        dtype: of the parameters.
        device: of the parameters.
        first_n_layers: leave out all later layers.

    Raises:
        StarError: no bridge leads to the architecture, its layers are not attention and MLP that add to a residual
            stream, it computes something else than HuggingFace does, or the weights cannot be read.
    """
    if not knows(architecture):
        raise StarError(
            f"TransformerBridge does not know the architecture {architecture}: name a model of one that it knows."
            f"{nearest(architecture, SUPPORTED_ARCHITECTURES)}"
        )
    hf: Any = checkpoint.transformers(dtype, first_n_layers)  # transformers' type of `to` has lost its self
    hf = hf.to(device).eval()
    tokens, expected = probe(hf)
    model = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hook points that this architecture lacks; those needed are checked
            model = build_bridge_from_module(hf, architecture, hf_config=hf.config, dtype=dtype)
        if dtype == torch.float64:
            for block in model.blocks:
                block.attn.register_forward_pre_hook(_finite_mask, with_kwargs=True)
        found = _checked(model, tokens, expected)
    except Exception as error:
        found = " ".join(str(error).split())[:160]
    if model is None or found is not None:
        raise StarError(
            f"star_tl cannot work on {architecture} through TransformerBridge in {str(dtype).removeprefix('torch.')} "
            f"({found}): use another dtype, or a checkpoint of another architecture."
        )
    return model


def _finite_mask(
    attention: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Softmax is in float32, where the smallest float64 is minus infinity, and a row of nothing else not a number."""
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dtype == torch.float64:
        kwargs = {**kwargs, "attention_mask": mask.clamp(min=torch.finfo(torch.float32).min)}
    return args, kwargs


@torch.no_grad()
def _checked(
    model: TransformerBridge, tokens: Int[Tensor, "one position"], expected: Float[Tensor, "one position vocab"]
) -> str | None:
    """What is wrong with a bridge, None where it does all that is asked of it."""
    layers = [[f"blocks.{layer}.{point}" for point in NEEDED] for layer in range(model.cfg.n_layers)]
    known = model.hook_dict
    if lacking := [name for names in layers for name in names if name not in known]:
        return f"it has no {lacking[0]}"
    fired: dict[str, Tensor] = {}

    def keep(name: str) -> NamedHook:
        return name, lambda activation, hook: fired.__setitem__(name, activation)

    with attached(model, [keep(name) for names in layers for name in names]):
        logits = model(tokens)
    close = CLOSE[model.cfg.dtype]
    if not difference(logits, expected) < close:
        return "its logits are not those of HuggingFace"
    order = {name: i for i, name in enumerate(fired)}
    for names in layers:
        places = [order.get(name, -1) for name in names]
        if places != sorted(places) or places[0] < 0:
            return f"its hook points near {names[0]} do not fire in order"
        before, _, _, attention, mlp, after = (fired[name] for name in names)
        if not (before + attention + mlp - after).float().abs().mean() < close * after.float().std():
            return f"{names[0]}, hook_attn_out and hook_mlp_out do not add up to hook_resid_post"
    # The same tokens with their end left off, pushed to the right by padding, and both rows read in two chunks.
    length = tokens.shape[1]
    rows = torch.cat([tokens, tokens.roll(_PADDING, 1)])
    mask = torch.ones_like(rows)
    mask[1, :_PADDING] = 0
    cache = empty_cache(model, len(rows))
    for part in (slice(length // 2), slice(length // 2, length)):
        last = residual_stream(model, rows[:, part], mask[:, part], cache)[:, -1:]
    if not difference(unembed(model, last)[:, 0], expected[0, [length - 1, length - 1 - _PADDING]]) < close:
        return "with padding and a cache it computes something else"
    return None


@contextmanager
def attached(model: TransformerBridge, hooks: Sequence[NamedHook]) -> Iterator[None]:
    """Forward hooks for the time of the context, names and filters as in ``model.hooks``."""
    level = model.context_level + 1
    touched: list[HookPoint] = []

    def add(name: str, function: HookFunction) -> None:
        point: Any = reduce(getattr, name.split("."), cast(Any, model))  # hook_dict would be made anew
        point.add_hook(function, level=level)
        touched.append(point)
        if torch.is_grad_enabled() and name.endswith(("hook_attn_out", "hook_mlp_out")):
            block = model.blocks[int(name.split(".")[1])]
            if isinstance(block, ScaledResidualBlockBridge):
                point.add_hook(lambda gradient, hook: None, dir="bwd", level=level)

    model.context_level = level
    try:
        named = [(name, f) for key, f in hooks for name in _names(model, key)]
        middle = [(name, f) for name, f in named if name.endswith("hook_resid_mid")]
        for name, function in named:
            if not name.endswith("hook_resid_mid"):
                add(name, function)
        for name, function in middle:  # last, for all that is written before it is part of the sum
            for place, part in _in_the_middle(name, function):
                add(place, part)
        yield
    finally:
        for point in touched:
            point.remove_hooks(dir="both", level=level)
        model.context_level -= 1


def _names(model: TransformerBridge, key: str | Callable[[str], bool]) -> list[str]:
    """The hook points that a name or a filter means; one that has several names once."""
    if isinstance(key, str):
        return [key]
    found: dict[int, str] = {}
    for name, point in model.hook_dict.items():
        if key(name):
            found.setdefault(id(point), name)
    return list(found.values())


def _in_the_middle(name: str, function: HookFunction) -> list[tuple[str, HookFunction]]:
    """A hook on the residual stream between attention and MLP: a hook on what attention adds to the stream."""
    prefix = name.removesuffix("hook_resid_mid")
    entering: list[Tensor] = []

    def enter(activation: Tensor, hook: object) -> None:
        entering[:] = [activation]

    def middle(activation: Tensor, hook: object) -> Tensor | None:
        before = entering.pop()
        changed = function(before + activation, hook=hook)
        return None if changed is None else changed - before

    return [(f"{prefix}hook_resid_pre", enter), (f"{prefix}hook_attn_out", middle)]


@dataclass(frozen=True)
class BlockCall:
    """A call of a block by HuggingFace's model: the residual stream, and the masks and positions that go with it."""

    block: nn.Module
    residual: Float[Tensor, "row position d"]
    args: tuple[object, ...]
    kwargs: dict[str, object]

    def again(self, residual: Float[Tensor, "row position d"], cache: Cache) -> Float[Tensor, "row position d"]:
        """The block's output for another residual stream and cache, all else being as it was."""
        args, kwargs = _with_cache(cache.keys_values, self.args, self.kwargs)
        out = self.block(residual, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out


@contextmanager
def block_calls(model: TransformerBridge) -> Iterator[list[BlockCall]]:
    """The calls of blocks within the context, in their order."""
    calls: list[BlockCall] = []

    def keep(block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        args, kwargs = _with_cache(DynamicCache(), args, kwargs)  # not to hold all layers' keys and values
        residual, *more = args or (kwargs.pop("hidden_states"),)
        calls.append(BlockCall(block, cast(Tensor, residual), tuple(more), kwargs))

    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in model.blocks]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _with_cache(
    cache: DynamicCache, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Arguments with this cache in place of theirs, whatever the architecture calls it."""

    def own(value: object) -> object:
        return cache if isinstance(value, DynamicCache) else value

    return tuple(map(own, args)), {key: own(value) for key, value in kwargs.items()}


@dataclass
class Cache:
    """Keys and values of the columns that were read, all of them in every layer, and which are no padding."""

    keys_values: DynamicCache
    mask: Int[Tensor, "row column"]

    def taken(self, rows: Int[Tensor, " row"]) -> Cache:
        """A cache of these rows, in this order; gradients flow back to this one."""
        keys_values, layers = DynamicCache(), cast(Any, self.keys_values.layers)
        for i, layer in enumerate(layers):
            if layer.is_initialized:
                keys_values.update(layer.keys[rows], layer.values[rows], i)
        return Cache(keys_values, self.mask[rows])


def empty_cache(model: TransformerBridge, rows: int) -> Cache:
    """A cache for so many rows of which nothing has been read."""
    # Without a config every layer keeps all of its keys.
    return Cache(DynamicCache(), torch.zeros(rows, 0, dtype=torch.long, device=model.cfg.device))


def residual_stream(
    model: TransformerBridge,
    tokens: Int[Tensor, "row position"],
    mask: Int[Tensor, "row position"],
    cache: Cache | None = None,
    layers: int | None = None,
) -> Float[Tensor, "row position d"]:
    """See :func:`star_tl.models.backend.residual_stream`."""
    options: dict[str, Any] = {"attention_mask": mask.long(), "use_cache": cache is not None}
    if cache is not None:
        cache.mask = torch.cat([cache.mask, mask.long()], 1)
        options |= {"attention_mask": cache.mask, "past_key_values": cache.keys_values}
    if layers is not None and layers < model.cfg.n_layers:
        return model(tokens, stop_at_layer=layers, **options)
    # After the last layer there is nothing to stop at: what leaves it is kept, and but one position is unembedded.
    kept: list[Tensor] = []
    if "logits_to_keep" in inspect.signature(model.original_model.forward).parameters:
        options["logits_to_keep"] = 1
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    with attached(model, [(last, lambda activation, hook: kept.append(activation))]):
        model(tokens, return_type=None, **options)
    return kept[0]


def unembed(model: TransformerBridge, residual: Float[Tensor, "row position d"]) -> Float[Tensor, "row position vocab"]:
    """Logits of the last layer's residual stream."""
    return model.adapter.apply_output_logits_transform(model.unembed(model.ln_final(residual)))


def weights(model: TransformerBridge) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its short name, in the shapes that HookedTransformer gives it.

    A part that TransformerBridge knows no such shape of, such as a mixture of experts, comes as HuggingFace has it.
    """
    shift = "Gemma" in type(model.original_model).__name__  # whose norms are stored less one

    def norm(module: Any) -> Iterator[tuple[str, Tensor]]:
        weight = getattr(module, "weight", None)
        if weight is not None:
            yield "w", (weight.float() + 1).to(weight.dtype) if shift else weight
        if getattr(module, "bias", None) is not None:
            yield "b", module.bias

    yield "embed.W_E", model.embed.W_E
    if hasattr(model, "pos_embed"):
        yield "pos_embed.W_pos", cast(Any, model.pos_embed).W_pos
    for i, block in enumerate(model.blocks):
        for part, module in block.named_children():
            if part.startswith("ln"):
                found = list(norm(module))
            elif part in _KNOWN:
                known = [(name, getattr(module, name, None)) for name in _KNOWN[part]]
                found = [(name, weight) for name, weight in known if weight is not None]
                found = found or list(module.named_parameters())
                for side in ("q_norm", "k_norm"):
                    found += [(f"{side}.{name}", weight) for name, weight in norm(getattr(module, side, None))]
            else:
                continue
            yield from ((f"blocks.{i}.{part}.{name}", weight) for name, weight in found)
    yield from ((f"ln_final.{name}", weight) for name, weight in norm(model.ln_final))
    yield "unembed.W_U", model.unembed.W_U
