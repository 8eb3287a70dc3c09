"""Slow truths: contrastive pairs and one unpadded row at a time, in plain TransformerLens and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from star_tl.attribution.align import corresponding
from star_tl.attribution.map import AttributionMap
from star_tl.data.chat import as_messages
from star_tl.data.pairs import ContrastivePair, Pairs, Trait
from star_tl.locus import COMPONENTS
from star_tl.models.lens import HookedTransformer

EOT = 3  # <|eot_id|> of the tests' tokenizer
KINDS = (*(f"hook_{c}" for c in COMPONENTS), "attn.hook_z")
WARM, COLD = "Be warm and kind to the person, and say how sorry you are.", "Be cold."


def pair(name: str, context: Any, positive: str, negative: str, **more: Any) -> ContrastivePair:
    for key in {"clean", "corrupted"} & set(more):
        more[key] = as_messages(more[key])
    return ContrastivePair(name, as_messages(context), positive, negative, **more)


def make_pairs(*pairs: ContrastivePair, positive: str = WARM, negative: str = COLD) -> Pairs:
    return Pairs(Trait("warmth", positive, negative, ("sorry",)), pairs)


def chat(*turns: str) -> list[dict[str, str]]:
    """Messages of a user and an assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def unequal_pairs() -> Pairs:
    """Pairs whose prompts, replies, turns and metrics all differ in length or kind."""

    def own(text: str) -> list[dict[str, str]]:
        return chat("Hi!", "Hello, how are you?", text)  # the same turns before one of another length

    return make_pairs(
        pair("short", "My cat died.", "I am so sorry to hear it.", "OK."),
        pair("long", "I lost my job on Monday and I have told nobody.", "Oh no.", "Jobs come and go, read the list."),
        pair("turns", chat("Hi!", "Hello, what is it?", "I failed."), "That must hurt a lot.", "Then learn more."),
        pair("one token", "Was it my fault?", "N", "Y", metric="logit"),
        pair(
            "own prompts",
            "Well?",
            "I care.",
            "So what.",
            clean=own("I love you all, really"),
            corrupted=own("I hate it"),
        ),
    )


def equal_length_pair(metric: str = "logit") -> Pairs:
    """Clean and corrupted prompts of the same tokens in another order: every token has a counterpart."""
    replies = ("N", "Y") if metric == "logit" else ("No, never.", "Yes")
    prompts = {"clean": "so the old cat saw a young dog", "corrupted": "so a young dog saw the old cat"}
    return make_pairs(pair("permuted", "Well?", *replies, metric=metric, **prompts))


def ids(model: HookedTransformer, messages: Any) -> list[int]:
    """Token ids as the tokenizer's own chat template makes them."""
    text = model.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def reply(model: HookedTransformer, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def prompts(model: HookedTransformer, pairs: Pairs, p: ContrastivePair) -> tuple[list[int], list[int]]:
    """Ids of the clean and the corrupted prompt: the pair's own, or the context under an instruction."""
    if p.clean is not None and p.corrupted is not None:
        return ids(model, p.clean), ids(model, p.corrupted)
    clean, corrupted = pairs.trait.positive_instruction, pairs.trait.negative_instruction
    return tuple(ids(model, [{"role": "system", "content": s}, *p.context]) for s in (clean, corrupted))  # type: ignore


def half_metric(logits: Tensor, prompt_length: int, answer: Sequence[int], metric: str) -> Tensor:
    """One reply's part of the metric, from the logits ``[position vocab]`` of one row."""
    at = torch.arange(len(answer)) + prompt_length - 1
    if metric == "logit":
        return logits[prompt_length - 1, answer[0]]
    return logits.log_softmax(-1)[at, torch.tensor(answer)].mean()


def one_row(model: HookedTransformer, prompt: list[int], answer: list[int], metric: str) -> tuple[Tensor, dict, dict]:
    """One reply's part of the metric, with the activations and gradients at every hook point."""
    acts: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        acts[hook.name] = activation

    names = [f"blocks.{layer}.{kind}" for layer in range(model.cfg.n_layers) for kind in KINDS]
    hooks = [("hook_embed", lambda a, hook: a.detach().requires_grad_()), *((n, keep) for n in names)]
    with torch.enable_grad():
        logits = model.run_with_hooks(torch.tensor([prompt + answer]), fwd_hooks=hooks)[0]
        value = half_metric(logits, len(prompt), answer, metric)
        grads = torch.autograd.grad(value, [acts[n] for n in names])
    detached = {n: acts[n].detach()[0] for n in names}
    return value.detach(), detached, {n: g[0] for n, g in zip(names, grads, strict=True)}


def counterparts(clean: list[int], corrupted: list[int]) -> list[tuple[int, int]]:
    """(corrupted, clean) positions: turn by turn the common tokens and single replacements, without the beginning."""

    def turns(tokens: list[int]) -> list[tuple[int, int]]:
        ends = [i + 1 for i, t in enumerate(tokens) if t == EOT] + [len(tokens)]
        return list(zip([0, *ends[:-1]], ends, strict=True))

    found = []
    for (start, end), (other_start, other_end) in zip(turns(corrupted), turns(clean), strict=True):
        skip = start == 0
        pairs = corresponding(corrupted[start + skip : end], clean[other_start + skip : other_end])
        found += [(start + skip + i, other_start + skip + j) for i, j in pairs]
    return found


def attribution(model: HookedTransformer, pairs: Pairs, window: int) -> dict[str, Tensor]:
    """The tensors of an AttributionMap, one row at a time, as its docstring defines them."""
    cfg, n, made = model.cfg, len(pairs), [prompts(model, pairs, p) for p in pairs]
    end = max(len(ids) for both in made for ids in both)
    positive = max(len(reply(model, p.positive)) for p in pairs)
    width = end + positive + max(len(reply(model, p.negative)) for p in pairs)
    scores = torch.zeros(n, len(COMPONENTS), cfg.n_layers, width, dtype=torch.float64)
    heads = torch.zeros(n, cfg.n_layers, cfg.n_heads, width, dtype=torch.float64)
    metric = torch.zeros(2, n, dtype=torch.float64)
    windows: list[list[Any]] = [[0] * cfg.n_layers for _ in pairs]  # gradients at resid_post of the last prompt tokens
    v: dict[str, Tensor] = {}
    g: dict[str, Tensor] = {}

    for i, p in enumerate(pairs):
        clean_prompt, corrupted_prompt = made[i]
        for sign, answer, start in ((1, reply(model, p.positive), end), (-1, reply(model, p.negative), end + positive)):
            clean_value, clean, _ = one_row(model, clean_prompt, answer, p.metric)
            corrupted_value, corrupted, gradient = one_row(model, corrupted_prompt, answer, p.metric)
            metric[0, i] += sign * corrupted_value
            metric[1, i] += sign * clean_value
            lengths = len(corrupted_prompt), len(clean_prompt)
            matches = [(a, b, end - lengths[0] + a) for a, b in counterparts(clean_prompt, corrupted_prompt)]
            matches += [(lengths[0] + k, lengths[1] + k, start + k) for k in range(len(answer))]
            ours, theirs, columns = (list(x) for x in zip(*matches, strict=True))
            for layer in range(cfg.n_layers):
                for kind, name in enumerate(KINDS):
                    name = f"blocks.{layer}.{name}"
                    product = sign * ((clean[name][theirs] - corrupted[name][ours]) * gradient[name][ours]).sum(-1)
                    into = scores[i, kind, layer] if kind < len(COMPONENTS) else heads[i, layer]
                    into[..., columns] += product.movedim(0, -1)
                    near = [clean[name][lengths[1] - window : lengths[1]], corrupted[name][: lengths[0]][-window:]]
                    v[name] = v.get(name, 0) + (near[0] - near[1]) / n / 2  # the same under both replies
                    g[name] = g.get(name, 0) + sign * gradient[name][: lengths[0]][-window:] / n
                windows[i][layer] += sign * gradient[f"blocks.{layer}.hook_resid_post"][: lengths[0]][-window:]
    steering = {name: (v[name] * g[name]).sum(-1) for name in v}
    layers = range(cfg.n_layers)
    last = [[of[-1] for of in row] for row in windows]
    return {
        "scores": scores,
        "head_scores": heads,
        "steering": torch.stack(
            [torch.stack([steering[f"blocks.{layer}.{kind}"] for layer in layers]) for kind in KINDS[:-1]]
        ),
        "head_steering": torch.stack([steering[f"blocks.{layer}.attn.hook_z"].T for layer in layers]),
        "gradients": torch.stack([torch.stack(row) for row in last]),
        "differences": torch.stack([v[f"blocks.{x}.hook_resid_post"][-1] for x in layers]),
        "position_effects": torch.stack(
            [
                torch.stack([(windows[i][x] * v[f"blocks.{x}.hook_resid_post"]).sum(-1) for x in layers])
                for i in range(n)
            ]
        ),
        "metric_corrupted": metric[0],
        "metric_clean": metric[1],
    }


def assert_same(attr: AttributionMap, truth: dict[str, Tensor]) -> None:
    """Equal to the truth; the map holds float32 (eps 6e-8), and the tests' scores are of order 0.1."""
    for name, wanted in truth.items():
        torch.testing.assert_close(
            getattr(attr, name).double(), wanted, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}"
        )


def hooks_left(model: HookedTransformer) -> list[str]:
    """Names of hook points that still hold a hook of any kind."""
    held = ("fwd_hooks", "bwd_hooks", "_forward_hooks", "_backward_hooks", "_forward_pre_hooks")
    return [name for name, point in model.hook_dict.items() if any(getattr(point, h) for h in held)]
