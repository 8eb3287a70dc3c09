"""What steering did: markers, fluency, drift, and paired comparison with the unsteered replies.

A marker rate alone lies, because broken text is full of marker words. A reply counts for a trait
only where it shows a marker **and** stays coherent, and the rate stands beside the drift it cost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from star_tl.data.chat import Prompt, as_prompts, render
from star_tl.data.markers import plain
from star_tl.data.pairs import Trait
from star_tl.errors import StarError, check_kind, check_whole
from star_tl.generation.decoding import residuals_of
from star_tl.generation.likelihood import reply_scores
from star_tl.generation.sampling import in_batches
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Reply
from star_tl.locus import NamedHook
from star_tl.models.backend import MODELS, Model, tokenizer_of
from star_tl.models.batch import TokenBatch, make_batch, pad_id
from star_tl.models.memory import fitting_batches
from star_tl.stats import changes, compare_paired, holm
from star_tl.steering.condition import UNSTEERED, Condition, Row, batch_hooks

FIRST_PERSON = re.compile(r"\b(?:i|me|my|mine|myself)\b", re.IGNORECASE)
WORD = re.compile(r"\w+(?:'\w+)*")
COHERENT_QUANTILE = 0.02
ROWS, ROWS_ON_GPU = 32, 256  # of a forward pass
TOKENS, TOKENS_ON_GPU = 4096, 2**17  # of prompts and replies that are read at once


def score(
    model: Model,
    trait: Trait,
    prompts: Sequence[Prompt],
    replies: Sequence[Reply],
    condition: Condition = Condition(),  # noqa: B008 - frozen
    batch_size: int | None = None,
) -> pd.DataFrame:
    """One row of scores per reply.

    Columns: ``text``, ``n_tokens``, ``stopped``, ``markers`` (those found), ``shows`` (any found),
    ``first_person`` (pronouns per 100 words), ``length`` (words), ``repetition`` (share of word
    trigrams that occurred before), ``logprob`` (mean per token under the unsteered model, nats),
    ``perplexity`` (its exponential), ``drift`` (mean over reply tokens of KL(the model that
    wrote the reply ‖ unsteered model), nats per token), ``drift_total`` (their sum: a mean thins out with length,
    and half of it may fall on the first token) and ``drift_max``. An empty reply has no ``logprob``; its drift is that
    of the token which ended it.

    Args:
        model: the model that wrote the replies.
        trait: whose markers to look for.
        prompts: the prompts, as the unsteered model sees them.
        replies: from :func:`star_tl.generate`.
        condition: the one that they were written under.
        batch_size: replies per forward pass. Default: 32, and on a GPU 256.

    Raises:
        StarError: another number of replies than of prompts, or memory is too small for a single one.
    """
    if batch_size is not None:
        check_whole(batch_size, "batch_size")
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(trait, Trait, "a trait, such as pairs.trait")
    check_kind(condition, Condition, "a Condition")
    check_kind(replies, (list, tuple), "replies as generate returns them")
    for reply in replies:
        check_kind(reply, Reply, "replies as generate returns them")
    prompts = as_prompts(prompts)
    if len(prompts) != len(replies):
        raise StarError("score needs as many replies as prompts.")

    def measure(at: Sequence[int]) -> list[dict[str, float]]:
        return _fluency(model, [prompts[i] for i in at], [replies[i] for i in at], condition)

    def alone(i: int) -> str:
        return f"Memory is too small to score reply {i} alone: score shorter replies, or load the model in bfloat16."

    rows, size = [], batch_size or (ROWS_ON_GPU if "cuda" in str(model.cfg.device) else ROWS)
    for at, measured in fitting_batches(range(len(replies)), lambda left: size, measure, alone, "replies"):
        rows += [_words(trait, replies[i]) | m for i, m in zip(at, measured, strict=True)]
    return pd.DataFrame(rows)


def write_measured(
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    seeds: Sequence[int],
    rows: Sequence[list[Row]],
    plain: Sequence[tuple[int, ...]],
    unsteered: Sequence[bool],
    sampling: Sampling,
) -> tuple[list[Reply], list[dict[str, float]] | None]:
    """Replies to token ids, and what :func:`measure_kept` says of them; None where no residual stream was at hand.

    Args:
        model: from :func:`star_tl.load_model`.
        prompts: as they are answered, an instruction among them.
        seeds: of every reply.
        rows: what is added in every reply, see :meth:`star_tl.Condition.rows`.
        plain: the prompts as the unsteered model sees them.
        unsteered: whether a reply is that model's own.
        sampling: how to sample.
    """
    replies: dict[int, Reply] = {}
    measured: dict[int, dict[str, float]] = {}

    def hooks_of(batch: list[int]) -> list[NamedHook]:
        return batch_hooks([rows[i] for i in batch])

    for batch, written in in_batches(model, prompts, seeds, hooks_of, sampling, progress=False, keep=True):
        replies |= {i: replace(reply, residual=None) for i, reply in zip(batch, written, strict=True)}
        if all(reply.residual is not None for reply in written):
            found = measure_kept(model, [plain[i] for i in batch], written, [unsteered[i] for i in batch])
            measured |= dict(zip(batch, found, strict=True))
    order = range(len(prompts))
    return [replies[i] for i in order], [measured[i] for i in order] if len(measured) == len(prompts) else None


def measure_kept(
    model: Model, prompts: Sequence[tuple[int, ...]], replies: Sequence[Reply], unsteered: Sequence[bool]
) -> list[dict[str, float]]:
    """What :func:`score` asks of the model, for replies to token ids that hold their ``residual``, as a row for each.

    The unsteered model reads all replies of a prompt together, and none that it wrote itself.
    """
    found: dict[int, dict[str, float]] = {}
    tokens = TOKENS_ON_GPU if "cuda" in str(model.cfg.device) else TOKENS

    def alone(i: int) -> str:
        return f"Memory is too small to score reply {i} of a batch alone: use a lower max_new_tokens."

    for itself in (True, False):
        own = [i for i, plainly in enumerate(unsteered) if plainly == itself]

        def measure(at: Sequence[int], itself: bool = itself) -> list[dict[str, float]]:
            written = [replies[i] for i in at]
            batch = make_batch(model, [prompts[i] for i in at], [_predicted(model, r) for r in written])
            kept = pad_sequence([r.residual for r in written if r.residual is not None], batch_first=True)
            if itself:
                return _measured(model, written, batch, kept, None)
            return _measured(model, written, batch, next(residuals_of(model, ((),), batch)), kept)

        def most(left: Sequence[int]) -> int:
            return max(1, tokens // max(len(prompts[i]) + len(replies[i].tokens) for i in left))

        for at, measured in fitting_batches(own, most, measure, alone, "replies"):
            found |= dict(zip(at, measured, strict=True))
    return [found[i] for i in range(len(replies))]


def score_table(trait: Trait, replies: Sequence[Reply], measured: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """The table of :func:`score` from what :func:`measure_kept` gave."""
    return pd.DataFrame([_words(trait, reply) | dict(m) for reply, m in zip(replies, measured, strict=True)])


def _predicted(model: Model, reply: Reply) -> tuple[int, ...]:
    """A reply's tokens; of an empty one a token in the place of that which ended it."""
    return reply.tokens or (pad_id(model),)


def _words(trait: Trait, reply: Reply) -> dict[str, Any]:
    text = plain(reply.text)
    words = WORD.findall(text)
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    found = [reply.text[start:end].lower() for start, end in trait.find(reply.text)]
    return {
        "text": reply.text,
        "n_tokens": len(reply.tokens),
        "stopped": reply.stopped,
        "markers": ", ".join(dict.fromkeys(found)),
        "shows": bool(found),
        "first_person": 100 * len(FIRST_PERSON.findall(text)) / max(1, len(words)),
        "length": len(words),
        "repetition": 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0,
    }


@torch.no_grad()
def _fluency(
    model: Model, prompts: Sequence[Prompt], replies: Sequence[Reply], condition: Condition
) -> list[dict[str, float]]:
    tokens = [_predicted(model, r) for r in replies]
    plain = make_batch(model, [render(tokenizer_of(model), p).ids for p in prompts], tokens)
    if condition.instruction is None:
        hooks = condition.hooks(tokenizer_of(model), prompts)
        ways = ((), hooks) if condition.vector is not None else ((),)
        base, *steered = residuals_of(model, ways, plain)
    else:
        asked = make_batch(model, [render(tokenizer_of(model), p).ids for p in condition.prompted(prompts)], tokens)
        hooks = condition.hooks(tokenizer_of(model), prompts)
        base, *steered = *residuals_of(model, ((),), plain), *residuals_of(model, (hooks,), asked)
    return _measured(model, replies, plain, base, steered[0] if steered else None)


@torch.no_grad()
def _measured(
    model: Model,
    replies: Sequence[Reply],
    plain: TokenBatch,
    base: Float[Tensor, "row reply d_model"],
    steered: Float[Tensor, "row reply d_model"] | None,
) -> list[dict[str, float]]:
    logprob, kl = reply_scores(model, plain, base, steered)
    logprob = logprob.sum(-1) / plain.reply_lengths
    total, most = kl.sum(-1), kl.amax(-1)
    measured = (logprob, total / plain.reply_lengths, total, most)
    results = []
    for reply, lp, *drift in zip(replies, *(values.tolist() for values in measured), strict=True):
        lp = lp if reply.tokens else float("nan")
        row = {"logprob": lp, "perplexity": float(np.exp(-lp))}
        results.append(row | dict(zip(("drift", "drift_total", "drift_max"), drift, strict=True)))
    return results


def mark_coherent(samples: pd.DataFrame) -> pd.DataFrame:
    """Add ``coherent``: log-probability at or above the unsteered replies' 2 % quantile."""
    reference = samples.loc[samples.arm == UNSTEERED, "logprob"].dropna()
    if reference.empty:
        raise StarError("Coherence is measured against unsteered replies: sample the arm 'unsteered' too.")
    return samples.assign(coherent=samples.logprob >= reference.quantile(COHERENT_QUANTILE))


def summarise(samples: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """One row per arm, compared with the unsteered arm prompt by prompt.

    ``trait_rate`` is the share of replies that show the trait and are coherent, with its 95 %
    Wilson interval; ``difference`` its difference to the unsteered arm in percentage points with a
    95 % bootstrap interval over prompts; ``p_value`` from sign-flip permutations, Holm-corrected
    over arms; ``wrong_way`` the share of prompts whose rate fell.
    """
    samples = samples.assign(hit=samples.shows & samples.coherent)
    base = samples[samples.arm == UNSTEERED].groupby("prompt_id").hit.mean()
    rows = []
    for arm, group in samples.groupby("arm", sort=False):
        low, high = proportion_confint(int(group.hit.sum()), len(group), method="wilson")
        row = {
            "arm": arm,
            "n": len(group),
            "trait_rate": group.hit.mean(),
            "low_rate": low,
            "high_rate": high,
            "marker_rate": group.shows.mean(),
            "coherent_rate": group.coherent.mean(),
            "drift": group.drift.mean(),
            "drift_p95": group.drift.quantile(0.95),
            "drift_total": group.drift_total.mean(),
            "perplexity": float(np.exp(-group.logprob.mean())),
            "length": group.length.mean(),
            "first_person": group.first_person.mean(),
            "repetition": group.repetition.mean(),
        }
        change = changes(group.groupby("prompt_id").hit.mean(), base)
        rows.append(row | compare_paired(change if arm != UNSTEERED else np.zeros(0), resamples, seed))
    table = pd.DataFrame(rows)
    return table.assign(p_value=holm(table.p_value.to_numpy(dtype=float)))
