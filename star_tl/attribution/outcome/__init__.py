"""Attribution to the outcome: what raises a reward of the model's own replies, to first order, and what it costs.

For an injection v and replies y drawn from the unsteered model, the expected reward grows with the strength of v by

    d E[R(y)] = E[(R(y) − b) G · v],    G = d log p(y | prompt) / d h

(score function; b the mean reward of the prompt's other replies). One forward and one backward pass a reply give G at
every layer and token, so that one sample tells the effect and the drift of every vector at every place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import NoneType

import torch

from star_tl.attribution.outcome.estimate import MANY_PROMPTS, Estimate
from star_tl.attribution.outcome.gradients import (
    UNTOUCHED,
    Collector,
    collect,
    points_there,
    stored,
    targets_of,
)
from star_tl.attribution.outcome.map import Direction, OutcomeMap
from star_tl.attribution.outcome.sample import Reward, check_sampling, name_of, rewards_of, spread, write_replies
from star_tl.data.chat import SPANS, Prompt, distinct_prompts, template_hash
from star_tl.errors import StarError, check_flag, check_kind, check_name, check_whole, quoted
from star_tl.files import output_path
from star_tl.generation.sampling import render_prompts
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Reply
from star_tl.models.backend import MODELS, Model, check_differentiable, tokenizer_of
from star_tl.models.load import fingerprint
from star_tl.models.size import free_memory
from star_tl.progress import Bar
from star_tl.steering.condition import Condition

WINDOW = 8  # prompt tokens, from the end, that gradients are kept for
ROUNDS = 4  # looks at the best cells before the budget is spent
MEMORY_SHARE = 0.7  # of the free memory: the most that the gradients take

__all__ = ["Direction", "Estimate", "OutcomeMap", "Reward", "attribute_outcome"]


@torch.inference_mode(False)  # a gradient is wanted wherever this is called
def attribute_outcome(
    model: Model,
    prompts: Sequence[Prompt],
    reward: Reward,
    n: int = 768,
    sampling: Sampling = Sampling(max_new_tokens=40),  # noqa: B008 - frozen
    seed: int = 0,
    least: int | None = None,
    hook_points: Sequence[str] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    under: Condition = UNTOUCHED,
) -> OutcomeMap:
    """Sample replies of the model and take the gradient of each one's log-probability at every layer.

    Replies are written in rounds; after each the cells are compared, and where the best layers stand apart
    (:attr:`OutcomeMap.apart`) no more are written.

    Args:
        model: from :func:`star_tl.load_model`, of either backend.
        prompts: texts or chats; no pairs are needed. The same one twice counts once.
        reward: ``reward(messages, reply text)``, a finite number; or, with an attribute ``batched`` that is true,
            ``reward([messages, ...], [text, ...])``, as many numbers.
        n: most replies in all, spread over the prompts; at least two for each, and four for each of few prompts.
        sampling: how to sample. Its distribution is the one that is differentiated: temperature and bounds included.
        seed: of the replies.
        least: fewest replies before it may stop; default a quarter of ``n``. With ``n`` itself all are written.
        hook_points: some of ``resid_post``, ``attn_out``, ``mlp_out``, ``z``; default all that the model has.
        out: a JSONL file of the replies; one that an equal call began is completed.
        progress: show progress bars.
        under: a second step, with a vector that is injected while replies are written and gradients are taken. The
            map's directions then say what to add to it (:func:`star_tl.combine`, at the same place), and its drift is
            that beyond the first step. It goes through autograd, which takes longer.

    Raises:
        StarError: bad arguments, a model that was loaded under ``torch.inference_mode()``, a reward that gives no
            finite number for a reply, ``out`` is another call's or cannot be written to, or gradients of so many
            replies do not fit into memory.
    """
    check_kind(model, MODELS, "a model that load_model returns")
    check_differentiable(model)
    check_kind(sampling, Sampling, "a Sampling")
    check_flag(progress, "progress")
    seed = Condition(seed=seed).seed  # raises where it is none
    if not callable(reward):
        raise StarError(f"reward is {quoted(reward)}: give a function of a prompt and a reply's text.")
    check_whole(n, "n")
    if least is not None:
        check_whole(least, "least")
    if out is not None:
        out = output_path(out)
    check_kind(under, Condition, "a Condition")
    if under.instruction is not None or under.positions in SPANS:
        raise StarError("attribute_outcome takes a vector and its positions in under, no instruction and no span.")
    check_sampling(sampling)
    chats = distinct_prompts(prompts)
    rendered = dict(zip(render_prompts(model, chats, sampling.max_new_tokens), chats, strict=True))
    ids, chats = list(rendered), tuple(rendered.values())  # white space that a template trims makes no other prompt
    needed = len(chats) * (2 if len(chats) >= MANY_PROMPTS else 4)
    if n < needed:
        raise StarError(f"{n} replies are too few for {len(chats)} prompts: use at least {needed}, or fewer prompts.")
    first = max(needed, -(-n // ROUNDS)) if least is None else least
    if not needed <= first <= n:
        raise StarError(f"least is {first}: use {needed} to {n}.")
    points = _points(model, hook_points)
    window = max(1, min(WINDOW, min(len(x) for x in ids) - 1))
    prompt = spread(n, len(chats))
    collector = _empty(model, points, window, n)
    log_probs = torch.zeros(n, dtype=torch.float64)
    replies: list[Reply] = []
    rewards = torch.zeros(0, dtype=torch.float64)
    while True:
        done, upto = len(replies), min(n, len(replies) + (-(-n // ROUNDS) if replies else first))
        replies = write_replies(
            model, ids, prompt[:upto], sampling, seed, under, replies, Path(out) if out else None, progress
        )
        of = prompt[done:upto].tolist()
        paid = rewards_of(reward, [chats[i] for i in of], [reply.text for reply in replies[done:]])
        rewards = torch.cat([rewards, paid])
        with Bar(total=upto - done, desc="gradients", unit="reply", disable=not progress, delay=2) as bar:
            for at, found in collect(model, ids, of, replies[done:], points, sampling, collector, done, under):
                log_probs[at] = found
                bar.update(len(at))
        kept = {point: gradient[:, :, :upto] for point, gradient in collector.gradients.items()}
        outcome = OutcomeMap(
            reward=name_of(reward),
            model=str(model.cfg.model_name),
            fingerprint=fingerprint(model),
            template=template_hash(tokenizer_of(model)),
            sampling=sampling,
            seed=seed,
            budget=n,
            prompts=chats,
            prompt=prompt[:upto],
            replies=tuple(reply.text for reply in replies),
            rewards=rewards,
            tokens=torch.tensor([len(targets_of(reply)) for reply in replies]),
            log_probs=log_probs[:upto],
            gradients={point: kept[same] for point, same in stored(model, points).items()},
            norms={point: norm / upto for point, norm in collector.norms.items()},
        )
        if upto == n or ("resid_post" in points and outcome.apart):
            return outcome


def _points(model: Model, asked: Sequence[str] | None) -> tuple[str, ...]:
    there = points_there(model)
    check_kind(asked, (str, Sequence, NoneType), "hook_points as a list of names")
    points = there if asked is None else (asked,) if isinstance(asked, str) else tuple(asked)
    for point in points:
        check_name(point, there, "hook point with outcome gradients")
    points = tuple(dict.fromkeys(points))
    if not points:
        raise StarError(f"There are no hook points: name some of {', '.join(there)}.")
    return points


def _empty(model: Model, points: Sequence[str], window: int, n: int) -> Collector:
    """Room for the gradients of all replies. Raises StarError where there is none."""
    cfg = model.cfg
    dtype = torch.float64 if cfg.dtype == torch.float64 else torch.bfloat16
    widths = {point: (cfg.n_heads, cfg.d_head) if point == "z" else (cfg.d_model,) for point in points}
    distinct = set(stored(model, points).values())
    shapes = {point: (cfg.n_layers, window + 1, n, *widths[point]) for point in points if point in distinct}
    needed, free = sum(dtype.itemsize * math.prod(s) for s in shapes.values()), free_memory("cpu")
    if needed > MEMORY_SHARE * free:
        raise StarError(
            f"The gradients of {n} replies take {needed / 1e9:.1f} GB and {free / 1e9:.1f} are free: use fewer "
            "replies, or hook_points=['resid_post']."
        )
    norms = {
        point: torch.zeros(cfg.n_layers, window + 1, *width[:-1], dtype=torch.float64)
        for point, width in widths.items()
    }
    return Collector({point: torch.zeros(shape, dtype=dtype) for point, shape in shapes.items()}, norms, window)
