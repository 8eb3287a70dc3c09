r"""What adding a vector costs: gradients of drift at the last prompt token, under the prompts that will be steered.

With random signs :math:`\sigma` and g the gradient of :func:`star_tl.attribution.objective.drift_probe` at
``resid_post``, an injection of s times v there moves the next-token distributions of both replies by a mean KL
divergence of

.. math:: s^2 \, E_\sigma[(g \cdot v)^2] / (2 T) + O(s^3)

nats a token, T being their tokens. The prompt is the context without an instruction: that is where a vector goes in.
What stands before its last token is not moved, so the graph begins there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from star_tl.attribution.forward import from_predicting, predicting
from star_tl.attribution.objective import drift_probe
from star_tl.attribution.rows import PairBatch
from star_tl.locus import NamedHook, hook_name
from star_tl.models.backend import Model, attached, empty_cache, residual_stream, taken, unembed
from star_tl.models.fast.attention import attend_masked
from star_tl.models.fast.backward import LlamaGradient, through_end
from star_tl.models.fast.forward import LlamaForward, llama_forward
from star_tl.models.lens import HookedTransformer
from star_tl.models.memory import free_beside

# What pulls on the logits takes: of a GPU's free memory, and on a CPU so much that it stays near its caches.
ROOM_SHARE, ROOM_BYTES = 0.15, 2**26


# For how many words the vocabulary has: the signs of both replies' tokens, and of the words, see PairBatch.signs.
Signs = Callable[[int], tuple[Float[Tensor, "draw 2*pair reply"], Float[Tensor, "draw pair vocab"]]]


def drift_gradients(model: Model, rows: PairBatch, signs: Signs) -> Float[Tensor, "pair draw layer d"]:
    """Gradients of every draw of random signs, over √(2T): a cost is the mean of (g · v)²."""
    llama = llama_forward(model)
    if llama is not None:
        assert isinstance(model, HookedTransformer)
        gradients = _by_formulas(model, llama, rows, signs)
    else:
        gradients = _by_autograd(model, rows, signs)
    tokens = rows.reply_mask.sum(1).view(2, -1).sum(0)
    return gradients / (2 * tokens[:, None, None, None]).sqrt().to(gradients)


def _by_formulas(model: HookedTransformer, llama: LlamaForward, rows: PairBatch, signs: Signs) -> Tensor:
    tokens, positions, seen = rows.whole_steered()
    last = rows.steered.shape[1] - 1
    cos, sin = llama.rotation(rows.positions(tokens), tokens.device)
    before: list[tuple[Tensor, Tensor]] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before.append((k.transpose(1, 2), v.transpose(1, 2)))
        return attend_masked(q, k, v, seen[:, :, :last, :last])

    embedded = F.embedding(tokens, model.embed.W_E)
    with torch.no_grad():
        early = positions[:, :last]
        llama(embedded[:, :last], (cos[early][:, None], sin[early][:, None]), attend, {})
    late = positions[:, last:]
    rotation = cos[late][:, :, None], sin[late][:, :, None]
    layers = LlamaGradient(llama, rotation, seen[:, :, last:], rows.size, before=before)
    residual = layers.forward(embedded[:, last:], lambda point, layer, activation: None)
    predicts = predicting(residual, rows)
    pulled = _pulled_by_formulas(model, predicts, signs)
    found: dict[int, Tensor] = {}

    def keep(point: str, layer: int, gradient: Tensor) -> None:
        if point == "resid_post":
            found[layer] = gradient[:, :, 0]

    layers.backward(from_predicting(pulled, rows), keep)
    return torch.stack([found[i] for i in sorted(found)]).permute(2, 1, 0, 3)


def _by_autograd(model: Model, rows: PairBatch, signs: Signs) -> Tensor:
    ends: list[Tensor] = []  # of every layer what leaves it at the last prompt token

    def keep(layer: int) -> NamedHook:
        def hook(activation: Tensor, hook: object) -> Tensor:
            if not ends:
                activation = activation.detach().requires_grad_()
            ends.append(activation)
            return activation

        return hook_name("resid_post", layer), hook

    with torch.enable_grad():
        logits = steered_logits(model, rows, list(map(keep, range(model.cfg.n_layers))))
        pulled = _pulled_by_autograd(logits, ends, signs)
    device = rows.steered.device
    return torch.stack([torch.stack([g[:, 0].to(device) for g in layers], 1) for layers in pulled], 1)


def steered_logits(model: Model, rows: PairBatch, hooks: Sequence[NamedHook]) -> Float[Tensor, "2*pair reply vocab"]:
    """Logits that predict both replies where no instruction stands, with ``hooks`` at the last prompt token alone."""
    cache = empty_cache(model, rows.size)
    with torch.no_grad():
        residual_stream(model, rows.steered[:, :-1], rows.steered_mask[:, :-1], cache)
    with attached(model, hooks):
        head = residual_stream(model, rows.steered[:, -1:], rows.steered_mask[:, -1:], cache)
    spread = rows.spread(rows.size)
    both = head[spread]
    if rows.replies.shape[1] > 1:  # nothing follows from a reply's last token
        tail = residual_stream(model, rows.replies[:, :-1], rows.reply_mask[:, :-1], taken(cache, spread))
        both = torch.cat([both, tail], 1)
    return unembed(model, both)


@torch.no_grad()
def _pulled_by_formulas(
    model: HookedTransformer, residual: Float[Tensor, "row reply d"], signs: Signs
) -> Float[Tensor, "draw row reply d"]:
    """Of each draw the gradient of the last residual stream; as many draws at once as memory is for."""
    p = unembed(model, residual).softmax(-1)
    tokens, words = signs(p.shape[-1])
    room = ROOM_SHARE * free_beside(model) / p.nbytes if p.is_cuda else ROOM_BYTES / p.nbytes
    found = []
    for own, vocabulary in zip(*(t.to(p).split(max(1, int(room))) for t in (tokens, words)), strict=True):
        pull = drift_probe(p, own, vocabulary.repeat(1, 2, 1))
        found.append(through_end(model, pull, residual))
    return torch.cat(found)


def _pulled_by_autograd(
    logits: Float[Tensor, "row reply vocab"], at: list[Tensor], signs: Signs
) -> list[tuple[Tensor, ...]]:
    """Of each draw the gradients at ``at``."""
    p = logits.detach().softmax(-1)
    tokens, words = signs(logits.shape[-1])
    return [
        torch.autograd.grad(logits, at, drift_probe(p, tokens[k].to(p), words[k].to(p).repeat(2, 1)), retain_graph=True)
        for k in range(len(tokens))
    ]
