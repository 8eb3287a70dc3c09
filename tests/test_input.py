"""What is of another kind than it should be is refused in one line, at every argument of every public function."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import star_tl as star
from star_tl.errors import StarError
from star_tl.generation.writing import Reply


class Unprintable:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


# None of these is anything that a function asks for; each breaks what is careless in a way of its own.
WRONG = {
    "an object": Unprintable(),
    "a matrix": np.ones((2, 2)),
    "complex numbers": torch.ones(2, dtype=torch.complex64),
    "a complex number": 1j,
    "bytes": b"\xff",
    "an array of nothing": np.array([None, 1], dtype=object),
}
Call = tuple[Callable[..., object], dict[str, Any]]


@pytest.fixture(scope="module")
def made(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of everything, for a tiny model."""
    file = tmp_path_factory.mktemp("input") / "prompts.txt"
    file.write_text("Hello.\n")
    pairs = star.load_pairs("agreement")
    pairs = dataclasses.replace(pairs, pairs=(*pairs.extraction.pairs[:2], *pairs.heldout.pairs[:1]))
    sampling = star.Sampling(max_new_tokens=2)
    vector = star.extract_vector(tiny, pairs, star.Locus("blocks.1.hook_resid_post"))
    outcome = star.attribute_outcome(
        tiny, pairs.extraction.prompts, lambda prompt, text: len(text), 8, sampling, least=8, progress=False
    )
    attr = star.attribute(tiny, pairs, hook_points=["resid_post"], progress=False)
    return {"pairs": pairs, "sampling": sampling, "vector": vector, "outcome": outcome, "attr": attr, "file": file}


def fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def calls(model: Any, made: Mapping[str, Any]) -> dict[str, Call]:
    pairs, vector, attr, outcome, sampling = (made[k] for k in ("pairs", "vector", "attr", "outcome", "sampling"))
    one, prompts = pairs.pairs[0], ["Hello."]
    asked = {"model": model, "prompts": prompts, "sampling": sampling, "progress": False}
    steered = {"hooks": (), "condition": None, "seed": 0}
    told = {"model": model, "pairs": pairs, "progress": False}
    judge = {"trait": pairs.trait, "url": "http://localhost:1/v1", "model": "m", "api_key": ""}
    told_of = {"model": model, "pairs": pairs}
    atp = {"method": "atp", "alignment": "spans", "mode": None, "hook_points": None, "seed": 0, "draws": 1}
    foreign = SimpleNamespace(layer_activations={1: torch.ones(model.cfg.d_model)}, layer_type="decoder_block")
    read = {"path": str(made["file"]), "mode": "single", "limit": 1, "max_turns": 3, "seed": 0}
    loaded = {"name": "demo", "dtype": None, "device": None, "backend": None, "tokenizer": None}
    run = told | {"quick": True, "drift": 0.1, "replies": 8, "strength": None, "seeds": (0,), "estimator": "atp"}
    return {
        "Trait": (star.Trait, fields(pairs.trait)),
        "ContrastivePair": (star.ContrastivePair, fields(one) | {"clean": one.context, "corrupted": one.context}),
        "Pairs": (star.Pairs, fields(pairs)),
        "Locus": (star.Locus, {"hook_point": "blocks.1.attn.hook_z", "positions": (-1,), "head": 0}),
        "Sampling": (star.Sampling, fields(sampling)),
        "Condition": (star.Condition, fields(star.Condition("a", vector, instruction="Be kind."))),
        "SteeringVector": (star.SteeringVector, fields(vector)),
        "AttributionMap": (star.AttributionMap, fields(attr)),
        "OutcomeMap": (star.OutcomeMap, fields(outcome)),
        "LLMJudge": (star.LLMJudge, judge | {"timeout": 1.0, "retries": 0, "parallel": 1}),
        "attribute": (star.attribute, told | atp),
        "exact_effects": (star.exact_effects, told | {"loci": [vector.locus], "rows_per_batch": 2, "metric": len}),
        "verify": (star.verify, told | {"attr": attr, "top_k": 1, "sample": 1, "seed": 0, "alignment": "spans"}),
        "attribute_outcome": (star.attribute_outcome, asked | {"reward": len, "n": 8, "seed": 0, "hook_points": None}),
        "extract_vector": (
            star.extract_vector,
            {"model": model, "pairs": pairs, "locus": vector.locus, "batch_size": 1},
        ),
        "extract_outcome_vector": (star.extract_outcome_vector, {"outcome": outcome, "locus": None, "method": "plain"}),
        "from_steering_vectors": (star.from_steering_vectors, told_of | {"source": foreign, "layer": 1}),
        "combine": (star.combine, {"vectors": [vector], "weights": [1.0]}),
        "project_off": (star.project_off, {"vector": vector, "other": vector}),
        "sample": (star.sample, asked | steered),
        "generate": (star.generate, asked | steered),
        "stream": (star.stream, {k: v for k, v in (asked | steered).items() if k != "progress"}),
        "score": (
            star.score,
            {"model": model, "trait": pairs.trait, "prompts": prompts, "replies": [Reply("a", (9,), True)]}
            | {"condition": star.Condition(), "batch_size": 1},
        ),
        "choose_strength": (
            star.choose_strength,
            asked | {"vector": vector, "trait": pairs.trait, "strengths": (1.0,), "limit": 0.2, "seed": 0, "out": None},
        ),
        "compare": (star.compare, told | {"prompts": prompts, "loci": [vector.locus], "seeds": (0,), "workers": None}),
        "converse": (star.converse, {"model": model, "turns": ["Hi."], "condition": star.Condition(), "carry": False}),
        "run": (star.run, run | {"method": "located", "positions": None, "sampling": sampling, "overwrite": False}),
        "evaluate": (
            star.evaluate,
            asked | {"task": "joy", "chosen": None, "drift": 0.1, "seeds": (0,), "turns": 0, "llm": None, "out": None},
        ),
        "choose_intervention": (
            star.choose_intervention,
            told | {"reward": None, "drift": 0.1, "attribution": attr, "outcome": outcome, "n": 8, "finalists": 3},
        ),
        "load_model": (star.load_model, loaded),
        "load_pairs": (star.load_pairs, {"source": "agreement"}),
        "load_prompts": (star.load_prompts, read),
        "judges_of": (star.judges_of, {"trait": "joy"}),
        "relevance": (star.relevance, {"prompts": prompts, "replies": ["a"], "batch_size": 1}),
        "copy_free_layout": (star.copy_free_layout, {"model": model}),
        "explore": (star.explore, {"model": model, "pairs": pairs, "attr": attr}),
        "vector.hooks": (vector.hooks, {"strength": 1.0, "positions": None, "prompt_length": 2}),
        "vector.random_like": (vector.random_like, {"seed": 0}),
        "vector.at_layer": (vector.at_layer, {"layer": 1}),
        "vector.check": (vector.check, {"model": model}),
        "attr.check": (attr.check, {"model": model}),
        "attr.effect": (attr.effect, {"vector": vector.vector[0]}),
        "attr.choose_layer": (attr.choose_layer, {"resamples": 9, "seed": 0, "vector": vector.vector[0]}),
        "attr.top_locus": (attr.top_locus, {"coverage": 0.9}),
        "attr.plot": (attr.plot, {"layers": [0], "style": "screen", "width": 6}),
        "outcome.effect": (outcome.effect, {"vector": vector, "positions": None}),
        "outcome.direction": (outcome.direction, {"locus": vector.locus, "positions": None, "method": "plain"}),
    }


# What a function does not look into itself: any reward or metric may be called, any hashable thing be a name.
NOT_ASKED = {"InterventionChoice", "Comparison", "StarError"}


def test_every_public_name_is_attacked(tiny: Any, made: Mapping[str, Any]) -> None:
    assert set(star.__all__) <= set(calls(tiny, made)) | NOT_ASKED


def every_argument(function: Callable[..., object], given: dict[str, Any]) -> dict[str, Any]:
    """What is given, and of the others the defaults; what goes to :class:`star_tl.Sampling` is tested there."""
    known = inspect.signature(function).parameters.values()
    named = [p for p in known if p.kind is not p.VAR_KEYWORD]
    assert {p.name for p in named if p.default is p.empty} <= set(given)
    inspect.signature(function).bind(**given)  # there is nothing else
    return {p.name: p.default for p in named if p.default is not p.empty} | given


def test_what_is_of_another_kind_is_one_line(tiny: Any, made: Mapping[str, Any], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    faults = []
    for name, (function, given) in calls(tiny, made).items():
        base = every_argument(function, given)
        for argument in base:
            for kind, wrong in WRONG.items():
                try:
                    made_of_it = function(**(base | {argument: wrong}))
                    if inspect.isgenerator(made_of_it):
                        next(made_of_it)
                    faults.append(f"{name}({argument}={kind}) was accepted")
                except StarError as error:
                    if len(str(error).splitlines()) != 1 or len(str(error)) > 1500:
                        faults.append(f"{name}({argument}={kind}): {str(error)[:99]}")
                except Exception as error:
                    faults.append(f"{name}({argument}={kind}): {type(error).__name__} {str(error)[:80]}")
    assert not faults, "\n".join(faults)
    assert not list(tmp_path.iterdir()), "nothing is half written"
