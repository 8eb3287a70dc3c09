"""The first minute: a prompt and a strength that show what steering does, found by writing replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from star_tl.data.chat import Prompt, as_messages
from star_tl.data.pairs import Trait
from star_tl.evaluation.intervention import InterventionChoice
from star_tl.evaluation.scores import score
from star_tl.evaluation.strength import DRIFT_LIMIT
from star_tl.generation.sampling import stream
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Reply
from star_tl.models.backend import Model, tokenizer_of
from star_tl.steering.condition import Condition, batch_hooks
from star_tl.steering.positions import read_positions
from star_tl.view.explorer.doses import Chosen, natural

FACTORS = (1.0, 2.0)  # × the strength that a locus begins with
SAMPLING = Sampling()
TRIES = 10  # in float32 the first is as in the batch that it was found in, in bfloat16 rarely


@dataclass(frozen=True)
class First:
    """What to show first: a strength, and prompts whose reply has the trait only where it is steered, best first.

    ``lacking`` are those whose unsteered reply lacks it. ``gained`` and ``lost`` count of ``tried`` prompts those that
    show the trait only steered, and only unsteered.
    """

    share: float
    prompts: tuple[Prompt, ...]
    lacking: tuple[Prompt, ...]
    gained: int
    lost: int
    tried: int

    def describe(self) -> str:
        """One line for the page, so that one prompt that works is not taken for all."""
        return (
            f"The prompt was looked for: of {self.tried}, {self.gained} show the trait only steered "
            f"(at strength {self.share:g}), {self.lost} only unsteered."
        )


def find_first(
    model: Model,
    trait: Trait,
    prompts: Sequence[Prompt],
    chosen: Chosen,
    seed: int,
    say: Callable[[float], None],
) -> First:
    """Write unsteered and steered replies to the prompts, and see which lack the trait and gain it.

    A steered reply counts where it drifts less than the limit and is as likely as the unsteered replies.
    """
    vector, at = chosen.vector, read_positions(chosen.positions)
    if vector is None or chosen.strength is None:
        raise ValueError("The locus is not ready.")
    shares = [float(f"{factor * chosen.strength:.2g}") for factor in FACTORS]
    steered = [Condition("steered", vector, natural(vector, share), at) for share in shares]
    ways = [Condition(), *steered]
    asked = [p for _ in ways for p in prompts]
    rows = [way.rows(tokenizer_of(model), p) for way in ways for p in prompts]
    replies: list[Reply] = []
    for step, replies in enumerate(stream(model, asked, batch_hooks(rows), seed=seed, sampling=SAMPLING), 1):  # noqa: B007
        say(step / SAMPLING.max_new_tokens)
    n, before = len(prompts), replies[: len(prompts)]
    has = [trait.shown_in(r.text) for r in before]
    lacking = tuple(p for p, r, h in zip(prompts, before, has, strict=True) if r.text and not h)
    floor = score(model, trait, prompts, before).logprob.min()
    found = []
    for k, (share, way) in enumerate(zip(shares, steered, strict=True), 1):
        after = score(model, trait, prompts, replies[k * n : (k + 1) * n], way)
        shows = (after.shows & (after.drift <= DRIFT_LIMIT) & (after.logprob >= floor)).tolist()
        hits = [
            (p, drift)
            for p, r, old, new, drift in zip(prompts, before, has, shows, after.drift, strict=True)
            if r.text and new and not old
        ]
        hits.sort(key=lambda hit: (len(hit[0]) > 1, hit[1]))  # what one types: a single turn
        lost = sum(old and not new for old, new in zip(has, shows, strict=True))
        found.append(First(share, tuple(p for p, _ in hits), lacking, len(hits), lost, n))
    return max(found, key=lambda first: first.gained - first.lost)


def settle(first: First, write: Callable[[str, int], tuple[bool, bool]]) -> bool:
    """Write to one prompt after another until the trait is shown only steered; else to one that lacked it unsteered.

    Args:
        first: what was found. Prompts that gain the trait come first, then others that lacked it, then all with
            further seeds.
        write: writes both replies to a single turn with so many seeds further, and says whether the unsteered and the
            steered one show the trait.

    Returns:
        False where nothing was written, or nothing fit: any prompt will do.
    """
    order = [*first.prompts, *(p for p in first.lacking if p not in first.prompts)]
    single = [m[0]["content"] for p in order if len(m := as_messages(p)) == 1]
    known = 0 if first.prompts else len(single)  # without a prompt that gains it, the first seed has nothing to show
    tries = [(single[k % len(single)], k // len(single)) for k in range(known, known + TRIES)] if single else []
    lacked, last = None, None
    for last in tries:
        unsteered, steered = write(*last)
        if steered and not unsteered:
            return True
        lacked = last if lacked is None and not unsteered else lacked
    if lacked is not None and lacked != last:
        write(*lacked)
    return lacked is not None


def chosen_by_replies(choice: InterventionChoice) -> Chosen:
    """What :func:`star_tl.choose_intervention` chose, as a locus of the page."""
    at, vector = choice.condition.positions or "locus", choice.vector
    typed = at if isinstance(at, str) else ", ".join(map(str, at))
    share = float(f"{choice.condition.strength * vector.fraction:.3g}")
    return Chosen(vector.locus, 0, typed, share, vector=vector, source="chosen by replies")
