"""What an intervention is compared with: the published ways to steer, their controls, and asking in words."""

from __future__ import annotations

import random
from collections.abc import Container
from dataclasses import replace

import torch

from star_tl.attribution import AttributionMap
from star_tl.data.chat import as_messages
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError
from star_tl.evaluation.preflight import at_last_token, held_out_auc, layers
from star_tl.locus import Locus, hook_name
from star_tl.models.backend import Model
from star_tl.steering.condition import UNSTEERED, Condition
from star_tl.vectors import SteeringVector, extract_vector, extract_vectors

RANDOM = 10  # random vectors, a reply to each prompt: one alone may happen to lie well
SHUFFLES = 4
SHOTS = 3
TOP_HEADS = 0.1  # of all heads: ITI's sweet spot lies near it (arXiv 2306.03341, 48 of 1024 in LLaMA-7B)
CHOSEN, LOCATED, PRIMED, BOTH = "chosen", "located", "priming", "priming + located"
NEGATIVE, REMOVED, CAA = "negative strength", "projection removed", "middle layer, every token"
# What each condition is, for a table's notes.
CONDITIONS = {
    UNSTEERED: "the model as it is",
    CHOSEN: "the intervention that was asked about",
    LOCATED: "mean difference of the pairs at attribution's place",
    "wrong layer": "the same vector at the layer that attribution ranks last",
    CAA: "mean difference over reply tokens, middle layer (CAA, arXiv 2312.06681)",
    "all layers": "mean difference over reply tokens at every layer, every token (global steering)",
    "top heads": "mean difference of the heads that tell the pairs apart best, generated tokens (ITI, 2306.03341)",
    "shuffled labels": f"located with labels swapped in a random half of the pairs: {SHUFFLES} vectors, each with its "
    "opposite, for what is left is small, and at equal drift large; it may lie along the trait by chance",
    "random": f"{RANDOM} random directions of the located vector's norm at its place",
    NEGATIVE: "located, taken away",
    REMOVED: "what lies along located, its layer, every token (Arditi et al. 2024, arXiv 2406.11717): all of it, or as "
    "much as the drift allows",
    PRIMED: "the trait's instruction as system message, no vector",
    "few-shot": f"{SHOTS} replies that show the trait as examples in the system message, no vector",
    BOTH: "the instruction, and the located vector at the strength it has alone",
}


def asked_about(names: Container[str]) -> str:
    """The condition that a claim is about: the intervention that was chosen, else the located vector."""
    return CHOSEN if CHOSEN in names else LOCATED


def vector_conditions(model: Model, pairs: Pairs, attr: AttributionMap, seed: int = 0) -> list[Condition]:
    """The conditions that add a vector, at strength 1; their strength is to be set by drift.

    Random vectors and shuffles are told apart by the name's number.
    """
    locus = attr.top_locus()
    located = extract_vector(model, pairs, locus)
    means = extract_vectors(model, pairs, layers(model), method="reply_mean")
    caa = means[(model.cfg.n_layers - 1) // 2]
    heads = top_heads(model, pairs)
    shuffled = [extract_vector(model, shuffled_labels(pairs, seed + k), locus) for k in range(SHUFFLES // 2)]
    return [
        Condition(LOCATED, located),
        Condition("wrong layer", located.at_layer(attr.choose_layer().last_ranked)),
        Condition(CAA, caa, 0.3, "all"),
        Condition("all layers", means[0], 0.3 / len(means), "all", more=tuple(means[1:])),
        Condition("top heads", heads[0], positions="generated", more=tuple(heads[1:])),
        *(Condition(f"shuffled labels {2 * k + s}", v if s else -v) for k, v in enumerate(shuffled) for s in (0, 1)),
        *(Condition(f"random {k}", located.random_like(k)) for k in range(RANDOM)),
        Condition(NEGATIVE, -located),
        Condition(REMOVED, located, positions="all", remove=True),
    ]


def worded_conditions(pairs: Pairs) -> list[Condition]:
    """The conditions that only ask."""
    return [
        Condition(PRIMED, instruction=pairs.trait.positive_instruction),
        Condition("few-shot", instruction=few_shot(pairs)),
    ]


def few_shot(pairs: Pairs) -> str:
    """The first extraction pairs of one turn, with their positive replies, as a system message."""
    single = [p for p in pairs.extraction if len(p.context) == 1][:SHOTS] or list(pairs.extraction)[:SHOTS]
    shots = [f"User: {as_messages(p.context)[-1]['content']}\nReply: {p.positive}" for p in single]
    return "\n\n".join(("Reply in the manner of these examples.", *shots))


def shuffled_labels(pairs: Pairs, seed: int = 0) -> Pairs:
    """The pairs with clean and corrupted swapped in a random half."""
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    swapped = set(order[: len(order) // 2])
    return replace(
        pairs,
        pairs=tuple(
            replace(
                p,
                positive=p.negative,
                negative=p.positive,
                clean=tuple(as_messages(pairs.corrupted_prompt(p))),
                corrupted=tuple(as_messages(pairs.clean_prompt(p))),
            )
            if i in swapped
            else p
            for i, p in enumerate(pairs)
        ),
    )


def top_heads(model: Model, pairs: Pairs, share: float = TOP_HEADS) -> list[SteeringVector]:
    """Vectors of the heads whose mean difference tells held-out pairs apart best, best first.

    Li et al. 2023 (arXiv 2306.03341) rank heads by a logistic probe's accuracy and move along the mean difference; the
    area under the ROC curve of that direction ranks them here.
    """
    if not 0 < share <= 1:
        raise StarError(f"share of heads is {share!r}: give one above 0, at most 1.")
    cfg = model.cfg
    heads = [Locus(hook_name("z", i), head=k) for i in range(cfg.n_layers) for k in range(cfg.n_heads)]
    made, held = (at_last_token(model, split, heads) for split in (pairs.extraction, pairs.heldout))
    count = max(1, round(share * len(heads)))
    best = torch.argsort(held_out_auc(made, held), descending=True, stable=True)[:count].tolist()
    return extract_vectors(model, pairs, [heads[i] for i in best])
