"""The gradient of every reply's log-probability at every layer, from one forward and one backward pass.

    G = d log p(reply | prompt) / d h

at each of the last prompt tokens, and summed from the last prompt token on (the schedule ``"generated"``). p is the
distribution that replies were drawn from: temperature and bounds are part of it, and so is the end of the turn.

A prompt's keys and values are computed once up to the first token whose gradient is wanted; only the tokens from there
on go forward and back. The vocabulary is visited a piece of the tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from star_tl.data.chat import stop_ids
from star_tl.generation.picking import bounded
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Reply
from star_tl.locus import NamedHook, hook_name
from star_tl.models.backend import Model, attached, empty_cache, residual_stream, taken, tokenizer_of, unembed
from star_tl.models.batch import pad_id
from star_tl.models.fast.backward import LlamaGradient, through_end
from star_tl.models.fast.decode import CachedLayers
from star_tl.models.fast.forward import LlamaForward, llama_forward
from star_tl.models.lens import HookedTransformer
from star_tl.models.memory import fitting_batches, give_back
from star_tl.models.size import free_memory
from star_tl.steering.condition import Condition

UNTOUCHED = Condition()
END = -1  # as a target: any token that ends the turn
AT_ONCE = 256  # tokens whose logits over the vocabulary are held at once
GRAPH_SHARE, GRAPH_BYTES = 0.2, 6e8  # of the free memory, and on a CPU at most: what a micro-batch may keep
# Hook points of the same gradient: what one block writes is added to the residual stream as it is.
SAME = {"mlp_out": "resid_post"}

See = Callable[[str, int, Tensor], None]


@dataclass(frozen=True)
class Rows:
    """Replies with the ends of their prompts, ``window`` tokens, as right-padded rows; ``targets`` follow from the last
    prompt token on. ``prefix`` holds what comes before, a row for each prompt, padded on the left.
    """

    tokens: Int[Tensor, "row column"]
    mask: Bool[Tensor, "row column"]
    targets: Int[Tensor, "row step"]
    wanted: Bool[Tensor, "row step"]
    prefix: Int[Tensor, "prompt past"]
    prefix_mask: Bool[Tensor, "prompt past"]
    of: Int[Tensor, " row"]
    window: int


def make_rows(
    model: Model, ids: Sequence[tuple[int, ...]], prompt: Sequence[int], replies: Sequence[Reply], window: int
) -> Rows:
    """The rows of some replies, ``prompt`` of which are indices into ``ids``."""
    distinct = list(dict.fromkeys(prompt))
    targets = [targets_of(reply) for reply in replies]
    steps, past = max(map(len, targets)), max(len(ids[i]) for i in distinct) - window
    tokens = torch.full((len(replies), window + steps - 1), pad_id(model), dtype=torch.long)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    after = torch.full((len(replies), steps), pad_id(model), dtype=torch.long)
    wanted = torch.zeros(after.shape, dtype=torch.bool)
    for row, (i, goal) in enumerate(zip(prompt, targets, strict=True)):
        own = [*ids[i][-window:], *goal[:-1]]
        tokens[row, : len(own)], mask[row, : len(own)] = torch.tensor(own), True
        after[row, : len(goal)], wanted[row, : len(goal)] = torch.tensor(goal), True
    prefix = torch.full((len(distinct), past), pad_id(model), dtype=torch.long)
    prefix_mask = torch.zeros(prefix.shape, dtype=torch.bool)
    for row, i in enumerate(distinct):
        before = ids[i][:-window]
        prefix[row, past - len(before) :], prefix_mask[row, past - len(before) :] = torch.tensor(before), True
    of = torch.tensor([distinct.index(i) for i in prompt])
    device = model.cfg.device
    return Rows(*(t.to(device) for t in (tokens, mask, after, wanted, prefix, prefix_mask, of)), window=window)


def targets_of(reply: Reply) -> tuple[int, ...]:
    """What was drawn: the reply's tokens, and the end of the turn where that was drawn too."""
    return (*reply.tokens, END) if reply.stopped else reply.tokens


def points_there(model: Model) -> tuple[str, ...]:
    """The hook points at which gradients can be taken."""
    return tuple(p for p in ("resid_post", "attn_out", "mlp_out", "z") if hook_name(p, 0) in model.hook_dict)


def stored(model: Model, points: Sequence[str]) -> dict[str, str]:
    """For every hook point the one whose gradient is its own too, and is kept."""
    same = SAME if llama_forward(model) is not None else {}
    return {point: same.get(point, point) if same.get(point) in points else point for point in points}


def collect(
    model: Model,
    ids: Sequence[tuple[int, ...]],
    prompt: Sequence[int],
    replies: Sequence[Reply],
    points: Sequence[str],
    options: Sampling,
    collector: Collector,
    first: int = 0,
    under: Condition = UNTOUCHED,
) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, " row"]]]:
    """The gradients of all replies into ``collector``, where they are numbered from ``first`` on, in micro-batches.

    Yields the numbers of a batch's replies, and their log-probabilities in nats. Rows of the same prompt go through the
    model together, as many as memory allows, and half as many where it ran out.

    ``under`` is what the replies were written under, see :func:`reply_gradients`.

    Raises:
        StarError: memory is too small for a single reply.
    """
    cfg, window = model.cfg, collector.window
    heads = cfg.n_heads + 2 * (cfg.n_key_value_heads or cfg.n_heads)
    per_column = cfg.n_layers * (4 * cfg.d_model + 3 * heads * cfg.d_head + 2 * (cfg.d_mlp or 0)) * cfg.dtype.itemsize
    free = GRAPH_SHARE * free_memory(str(cfg.device))
    columns = (free if "cuda" in str(cfg.device) else min(GRAPH_BYTES, free)) / per_column
    order = sorted(range(len(replies)), key=lambda k: (len(ids[prompt[k]]), prompt[k], len(replies[k].tokens)))

    def take(left: Sequence[int]) -> int:
        longest = 0
        for count, k in enumerate(left):
            longest = max(longest, window + len(replies[k].tokens))
            if count and (count + 1) * longest > columns:
                return count
        return len(left)

    def work(batch: Sequence[int]) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
        rows = make_rows(model, ids, [prompt[k] for k in batch], [replies[k] for k in batch], window)
        at = torch.tensor(batch) + first
        see, read, commit = collector.batch(rows, at)
        found = reply_gradients(model, rows, points, options, see, read, under).cpu()
        commit()
        return at, found

    def alone(k: int) -> str:
        return f"Memory is too small for the gradients of reply {first + k} alone: use a lower max_new_tokens."

    for _, found in fitting_batches(order, take, work, alone, "replies"):
        yield found
    give_back()


def reply_gradients(
    model: Model,
    rows: Rows,
    points: Sequence[str],
    options: Sampling,
    see: See,
    read_: See,
    under: Condition = UNTOUCHED,
) -> Tensor:
    """Log-probability of every reply (nats); ``see`` gets each hook point's gradient, ``read_`` its activation.

    What these functions get has a column for each of ``rows.tokens``. With a vector in ``under`` all is that of the
    model as it is steered by it.
    """
    llama = llama_forward(model)
    if llama is not None and under.vector is None:
        return _by_hand(model, llama, rows, points, options, see, read_)
    end = rows.prefix.shape[1] + rows.window  # of every row's prompt: its past is padded on the left
    steering = under.hooks(tokenizer_of(model), (), end)
    return _through_hooks(model, rows, points, options, see, read_, steering)


def _by_hand(
    model: Model, llama: LlamaForward, rows: Rows, points: Sequence[str], options: Sampling, see: See, read_: See
) -> Tensor:
    assert isinstance(model, HookedTransformer)  # which alone has a written-out forward
    cfg = model.cfg
    (n, columns), (prompts, past) = rows.tokens.shape, rows.prefix.shape
    pads = (~rows.prefix_mask).sum(1)
    cache = torch.zeros(cfg.n_layers, 2, prompts, llama.kv_heads, past, cfg.d_head, dtype=cfg.dtype, device=pads.device)
    with torch.no_grad():
        CachedLayers(model, llama, {}, cache, pads).read(rows.prefix, 0)
    pads = pads[rows.of]
    columns_of = torch.arange(columns, device=rows.tokens.device)
    positions = columns_of + (past - pads)[:, None]
    cos, sin = (t[positions][:, :, None] for t in llama.rotation(int(positions.max()) + 1, rows.tokens.device))
    shown = torch.arange(past, device=rows.tokens.device) >= pads[:, None]
    own = columns_of <= columns_of[:, None]
    seen = torch.cat([shown[:, None].expand(-1, columns, -1), own.expand(n, -1, -1)], 2)[:, None]

    taken_rows = (layer.index_select(1, rows.of).transpose(2, 3) for layer in cache)
    before = [(keys, values) for keys, values in taken_rows]
    layers = LlamaGradient(llama, (cos, sin), seen, n, rows.window - 1, before)

    def whole(report: See) -> See:
        def hand_on(point: str, layer: int, late: Tensor) -> None:
            if point in points:
                early = columns - late.shape[1]
                report(point, layer, F.pad(late, (*[0, 0] * (late.ndim - 2), early, 0)) if early else late)

        return hand_on

    residual = layers.forward(F.embedding(rows.tokens, model.embed.W_E), whole(read_))
    value, pull = log_probs(model, residual, rows, options)
    layers.backward(pull, whole(see))
    return value


def _through_hooks(
    model: Model,
    rows: Rows,
    points: Sequence[str],
    options: Sampling,
    see: See,
    read_: See,
    steering: Sequence[NamedHook],
) -> Tensor:
    """The same for every other model, and for one that is steered, with autograd."""
    acts: dict[tuple[str, int], Tensor] = {}

    def keep(point: str, layer: int) -> NamedHook:
        def hook(activation: Tensor, hook: object) -> Tensor:
            acts[point, layer] = activation
            read_(point, layer, activation.detach())
            return activation  # what a bridge shows is a view that goes on only where it is returned

        return hook_name(point, layer), hook

    cache = empty_cache(model, len(rows.prefix))
    with torch.no_grad(), attached(model, steering):
        residual_stream(model, rows.prefix, rows.prefix_mask, cache)
    hooks: list[NamedHook] = [
        (hook_name("resid_pre", 0), lambda activation, hook: activation.detach().requires_grad_())
    ]
    hooks += steering  # before what reads: an activation is seen with what was added to it
    hooks += [keep(point, layer) for layer in range(model.cfg.n_layers) for point in points]
    with torch.enable_grad():
        with attached(model, hooks):
            residual = residual_stream(model, rows.tokens, rows.mask, taken(cache, rows.of))
        late = residual[:, rows.window - 1 :]
        value, pull = log_probs(model, late.detach(), rows, options)
        found = torch.autograd.grad(late, list(acts.values()), pull.to(late.dtype))
    for (point, layer), gradient in zip(acts, found, strict=True):
        see(point, layer, gradient)
    return value


def log_probs(
    model: Model, residual: Float[Tensor, "row step d"], rows: Rows, options: Sampling
) -> tuple[Float[Tensor, " row"], Float[Tensor, "row step d"]]:
    """Log-probability of what was drawn, and its gradient by the last residual stream.

    The bounds keep some tokens and scale their probabilities to sum to 1; which are kept is taken as given.
    """
    at = rows.wanted.nonzero(as_tuple=True)
    targets, device = rows.targets[at], residual.device
    stops = torch.tensor(stop_ids(tokenizer_of(model)), device=device)
    value = torch.zeros(len(residual), dtype=torch.float64, device=device)
    pull = torch.zeros_like(residual)
    by_hand = llama_forward(model) is not None
    for piece in torch.arange(len(targets), device=device).split(AT_ONCE):
        where, goal = tuple(t[piece] for t in at), targets[piece]
        ends = (goal == END).nonzero(as_tuple=True)
        with torch.set_grad_enabled(not by_hand):
            x = residual[where].detach().requires_grad_(not by_hand)
            logits = unembed(model, x[None])[0] / options.temperature
            if options.top_p < 1 or options.min_p > 0:
                logits = logits.masked_fill(~_kept(logits.detach(), goal, stops, options), -torch.inf)
            logs = logits.log_softmax(-1)
            drawn = logs.gather(-1, goal.clamp_min(0)[:, None])[:, 0]
            drawn = drawn.index_put(ends, logs[ends][:, stops].logsumexp(-1))
        if by_hand:
            assert isinstance(model, HookedTransformer)
            pulls = _pulls(logs, goal, stops).div_(options.temperature)
            pull[where] = through_end(model, pulls[None], x[None])[0]
        else:
            (pull[where],) = torch.autograd.grad(drawn.sum(), x)
        value.index_add_(0, where[0], drawn.detach().double())
    return value, pull


def _pulls(
    logs: Float[Tensor, "token vocab"], goal: Int[Tensor, " token"], stops: Int[Tensor, " stop"]
) -> Float[Tensor, "token vocab"]:
    """The gradient of what was drawn by the logits: its own distribution less the whole one; ``logs`` is lost."""
    rows, ends = (goal != END).nonzero()[:, 0], (goal == END).nonzero()[:, 0]
    within = logs[ends][:, stops].softmax(-1)
    pulls = logs.exp_().neg_()
    pulls[rows, goal[rows]] += 1
    pulls[ends[:, None], stops] += within
    return pulls


def _kept(
    warm: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"], stops: Int[Tensor, " stop"], options: Sampling
) -> Bool[Tensor, "token vocab"]:
    """What the bounds leave, and always what was drawn: another pass's rounding may have left it just inside."""
    kept = bounded(warm, 1.0, options.top_p, options.min_p) > 0
    likeliest = stops[warm[:, stops].argmax(-1)]
    return kept.scatter(-1, torch.where(targets == END, likeliest, targets)[:, None], True)


@dataclass
class Collector:
    """Where the gradients and the norms of activations of all replies go.

    ``gradients`` are ``[layer place reply ...]``; places are the ``window`` last prompt tokens, then all tokens from
    the last prompt token on together.
    """

    gradients: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    window: int

    def batch(self, rows: Rows, at: Int[Tensor, " row"]) -> tuple[See, See, Callable[[], None]]:
        """What takes the gradients, and what the activations, of a batch whose rows have these indices.

        The third adds the norms up once all has gone well: a batch that ran out of memory is tried again.
        """
        generated = rows.wanted.sum(1)
        seen: list[tuple[str, int, Tensor]] = []

        def gradient(point: str, layer: int, found: Tensor) -> None:
            if point not in self.gradients:  # that of another point
                return
            kept = self.gradients[point][layer]
            places = found[:, : self.window].transpose(0, 1)
            both = torch.cat([places, found[:, self.window - 1 :].sum(1)[None]])
            kept[:, at.to(kept.device)] = both.to(kept.device, kept.dtype)

        def activation(point: str, layer: int, found: Tensor) -> None:
            norm = found.norm(dim=-1, dtype=torch.promote_types(found.dtype, torch.float32))
            late = norm[:, self.window - 1 :]
            if layer == len(self.norms[point]) - 1:  # where nothing reads it a pass may leave it out
                norm[:, : self.window - 1] = 0
            over = rows.wanted.view(*rows.wanted.shape, *[1] * (late.ndim - 2))
            mean = (late * over).sum(1) / generated.view(-1, *[1] * (late.ndim - 2))
            seen.append((point, layer, torch.cat([norm[:, : self.window].sum(0), mean.sum(0)[None]])))

        def commit() -> None:
            for point, layer, added in seen:
                self.norms[point][layer] += added.double().cpu()

        return gradient, activation, commit
