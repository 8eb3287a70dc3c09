"""Outcome attribution against enumeration: a model of six words, all of whose replies can be counted out."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

import star_tl as star
from star_tl.attribution.outcome import estimate, gradients
from star_tl.attribution.outcome.sample import rewards_of
from star_tl.data.chat import render
from star_tl.errors import StarError
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Reply
from star_tl.locus import Locus
from star_tl.steering.condition import Condition

BEGIN, END, WORDS, LONGEST = 0, 1, "abcd", 3
PROMPTS = ("b c d a b", "d d a c a b a", "c a a b d b")
OPTIONS = {
    "plain": Sampling(max_new_tokens=LONGEST),
    "cool": Sampling(max_new_tokens=LONGEST, temperature=0.7),
    "top-p": Sampling(max_new_tokens=LONGEST, top_p=0.8),
    "cool top-p": Sampling(max_new_tokens=LONGEST, temperature=0.7, top_p=0.85),
    "min-p": Sampling(max_new_tokens=LONGEST, min_p=0.05),
}
REWARDS: dict[str, Callable[[Any, str], float]] = {
    "marker": lambda prompt, text: float("c" in text),
    "continuous": lambda prompt, text: math.sin(1 + len(text)) + 0.3 * text.count("b") + 0.1 * len(str(prompt)),
}
PLACES: tuple[tuple[str, tuple[int, ...], int | None, str | None], ...] = (
    ("blocks.0.hook_resid_post", (-1,), None, None),
    ("blocks.0.hook_resid_post", (-1,), None, "generated"),
    ("blocks.1.hook_resid_post", (-1,), None, "generated"),
    ("blocks.0.hook_attn_out", (-3, -1), None, None),
    ("blocks.1.hook_attn_out", (-1,), None, "generated"),
    ("blocks.0.hook_mlp_out", (-2,), None, None),
    ("blocks.0.attn.hook_z", (-1,), 2, "generated"),
    ("blocks.1.attn.hook_z", (-1,), 1, None),
)


@pytest.fixture(scope="module")
def six_words(write_llama: Callable[..., Path]) -> HookedTransformer:
    """Two layers and six words in float64, one of which ends a reply."""
    words = {"<s>": BEGIN, "</s>": END} | {w: i for i, w in enumerate(WORDS, start=2)}
    level = Tokenizer(models.WordLevel(words, unk_token="d"))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=level, bos_token="<s>", eos_token="</s>", unk_token="d")
    fast.chat_template = (
        "{{ '<s> ' }}{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
    )
    sizes = {"vocab_size": 6, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    folder = write_llama(seed=3, **sizes, initializer_range=0.4, eos_token_id=END, pad_token_id=END)
    fast.save_pretrained(folder)
    return star.load_model(str(folder), dtype="float64")


def all_replies() -> list[tuple[int, ...]]:
    words = [i for i in range(6) if i != END]
    return [reply for n in range(LONGEST + 1) for reply in itertools.product(words, repeat=n)]


def as_reply(model: HookedTransformer, tokens: tuple[int, ...]) -> Reply:
    text = model.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return Reply(text, tokens, stopped=len(tokens) < LONGEST)


def drawn_from(logits: Tensor, options: Sampling) -> list[float]:
    """The probabilities that a token is drawn with, word by word."""
    p = [math.exp(float(x) / options.temperature) for x in logits]
    p = [x / sum(p) for x in p]
    kept, held = [0.0] * len(p), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if held < options.top_p and p[i] >= options.min_p * max(p):
            kept[i] = p[i]
        held += p[i]
    return [x / sum(kept) for x in kept]


@torch.no_grad()
def probabilities(
    model: HookedTransformer, prompt: str, options: Sampling, place: Any = None, added: Tensor | None = None
) -> Tensor:
    """Of all replies, with a vector added by hand at one place or none; every prefix is read whole and alone."""
    ids = list(render(model.tokenizer, prompt).ids)

    def inject(activation: Tensor, hook: object) -> Tensor:
        _, positions, head, schedule = place
        columns = range(len(ids) - 1, activation.shape[1]) if schedule else [len(ids) + p for p in positions]
        out = activation.clone()
        for row, column in enumerate(columns):
            where = (slice(None), column) if head is None else (slice(None), column, head)
            out[where] = out[where] + added[0 if schedule else row]
        return out

    hooks = [] if place is None else [(place[0], inject)]
    following: dict[tuple[int, ...], list[float]] = {}
    for n in range(LONGEST):
        written = [r for r in all_replies() if len(r) == n]
        logits = model.run_with_hooks(torch.tensor([ids + list(r) for r in written]), fwd_hooks=hooks)[:, -1]
        following |= {r: drawn_from(row, options) for r, row in zip(written, logits, strict=True)}

    def of(reply: tuple[int, ...]) -> float:
        steps = [following[reply[:k]][token] for k, token in enumerate(reply)]
        return math.prod(steps) * (following[reply][END] if len(reply) < LONGEST else 1.0)

    return torch.tensor([of(reply) for reply in all_replies()], dtype=torch.float64)


def random_vector(model: HookedTransformer, place: Any, seed: int = 0) -> Any:
    name, positions, head, schedule = place
    width = model.cfg.d_model if head is None else model.cfg.d_head
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1 if schedule else len(positions), width, dtype=torch.float64, generator=generator)
    return SimpleNamespace(vector=rows, locus=Locus(name, positions, head))


def first_step(found: Any, size: float = 3) -> star.SteeringVector:
    return star.SteeringVector(
        vector=size * found.vector.float(),
        locus=found.locus,
        trait="any",
        method="random",
        residual_norm=1.0,
        n_pairs=1,
        model="",
        fingerprint="",
        template="",
    )


def enumerated(
    model: HookedTransformer,
    prompt: str,
    options: Sampling,
    place: Any = None,
    under: Condition = gradients.UNTOUCHED,
) -> tuple[star.OutcomeMap, Tensor]:
    """A map of every reply that can be drawn, rewards yet to be filled in, and the replies' probabilities."""
    replies = [as_reply(model, tokens) for tokens in all_replies()]
    p = probabilities(model, prompt, options, place, None if place is None else under.vector.vector.double())
    possible = [k for k in range(len(replies)) if p[k] > 0]
    written = [replies[k] for k in possible]
    return gradients_of(model, [prompt], written, [0] * len(possible), options, under=under), p[possible]


def gradients_of(
    model: Any,
    prompts: Any,
    replies: list[Reply],
    of: list[int],
    options: Sampling,
    window: int = 3,
    under: Condition = gradients.UNTOUCHED,
) -> star.OutcomeMap:
    ids = [render(model.tokenizer, prompt).ids for prompt in prompts]
    points, cfg, n = gradients.points_there(model), model.cfg, len(replies)
    widths = {point: (cfg.n_heads, cfg.d_head) if point == "z" else (cfg.d_model,) for point in points}
    made = {point: torch.zeros(cfg.n_layers, window + 1, n, *w, dtype=torch.float64) for point, w in widths.items()}
    norms = {p: torch.zeros(cfg.n_layers, window + 1, *w[:-1], dtype=torch.float64) for p, w in widths.items()}
    kept = gradients.stored(model, points)
    collector = gradients.Collector({p: made[p] for p in set(kept.values())}, norms, window)
    log_probs = torch.zeros(n, dtype=torch.float64)
    for at, found in gradients.collect(model, ids, of, replies, points, options, collector, 0, under):
        log_probs[at] = found
    return star.OutcomeMap(
        reward="r",
        model="",
        fingerprint="",
        template="",
        sampling=options,
        seed=0,
        budget=n,
        prompts=tuple(prompts),
        prompt=torch.tensor(of),
        replies=tuple(r.text for r in replies),
        rewards=torch.zeros(n, dtype=torch.float64),
        tokens=torch.tensor([len(gradients.targets_of(r)) for r in replies]),
        log_probs=log_probs,
        gradients={point: made[same] for point, same in kept.items()},
        norms={point: norm / n for point, norm in norms.items()},
    )


def slope(of: Callable[[float], Tensor], step: float) -> Tensor:
    return (of(step) - of(-step)) / (2 * step)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_all_replies_give_the_derivative_and_the_drift_exactly(
    six_words: HookedTransformer, name: str
) -> None:
    """Weighted by their probabilities, the replies' gradients are the expectation itself, not an estimate of it."""
    options, prompt = OPTIONS[name], PROMPTS[0]
    outcome, p = enumerated(six_words, prompt, options)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(outcome.log_probs, p.log(), rtol=0, atol=1e-10)
    assert (len(p) < len(all_replies())) == ("-p" in name), "the bounds must leave something out"
    every = probabilities(six_words, prompt, options)
    largest = 0.0
    for place in PLACES:
        v = random_vector(six_words, place)
        along = outcome._along(v, place[3])
        assert float(p @ along) == pytest.approx(0, abs=1e-10), "the score's mean is zero"

        def moved(strength: float, place: Any = place, v: Any = v) -> Tensor:
            return probabilities(six_words, prompt, options, place, strength * v.vector)[every > 0]

        for reward in REWARDS.values():
            rewards = torch.tensor([reward(prompt, text) for text in outcome.replies], dtype=torch.float64)
            exact = float(slope(moved, 1e-5) @ rewards)
            largest = max(largest, abs(exact))
            assert float(p @ (rewards * along)) == pytest.approx(exact, rel=1e-6, abs=1e-8)
        step = 1e-3
        divergence = sum(float(p @ (p / moved(s)).log()) for s in (step, -step)) / 2 / step**2
        assert float(p @ along.square()) / 2 == pytest.approx(divergence, rel=1e-4)
    assert largest > 0.05, "the truth must not be trivial"


@pytest.mark.parametrize("place", [PLACES[0], PLACES[1], PLACES[3], PLACES[6]], ids=str)
def test_a_second_step_is_the_derivative_where_the_first_one_led(six_words: HookedTransformer, place: Any) -> None:
    prompt, options = PROMPTS[0], OPTIONS["cool top-p"]
    first = first_step(random_vector(six_words, place, seed=9))
    outcome, p = enumerated(six_words, prompt, options, place, Condition("first", first, 1.0, place[3]))
    torch.testing.assert_close(outcome.log_probs, p.log(), rtol=0, atol=1e-10)
    every = probabilities(six_words, prompt, options, place, first.vector.double())
    assert float((every - probabilities(six_words, prompt, options)).abs().sum()) > 0.05, "the first step moves it"
    v = random_vector(six_words, place)

    def moved(strength: float) -> Tensor:
        return probabilities(six_words, prompt, options, place, first.vector.double() + strength * v.vector)[every > 0]

    along = outcome._along(v, place[3])
    rewards = torch.tensor([REWARDS["continuous"](prompt, text) for text in outcome.replies], dtype=torch.float64)
    exact = float(slope(moved, 1e-5) @ rewards)
    assert abs(exact) > 1e-3
    assert float(p @ (rewards * along)) == pytest.approx(exact, rel=1e-6, abs=1e-8)
    step = 1e-3
    divergence = sum(float(p @ (p / moved(s)).log()) for s in (step, -step)) / 2 / step**2
    assert float(p @ along.square()) / 2 == pytest.approx(divergence, rel=1e-4)


def test_replies_of_a_second_step_are_written_under_the_first(six_words: HookedTransformer, tmp_path: Path) -> None:
    prompt, sampling, place = PROMPTS[1], dataclasses.replace(OPTIONS["plain"], batch_size=400), PLACES[1]
    first = first_step(random_vector(six_words, place, seed=9), 12)
    under, out = Condition("first", first, 1.0, place[3]), tmp_path / "replies.jsonl"

    def attribute(under: Condition) -> star.OutcomeMap:
        return star.attribute_outcome(
            six_words, [prompt], count_c, 800, sampling, least=800, out=out, progress=False, under=under
        )

    outcome = attribute(under)
    texts = [as_reply(six_words, tokens).text for tokens in all_replies()]
    rewards = torch.tensor([count_c(prompt, text) for text in texts], dtype=torch.float64)
    steered = probabilities(six_words, prompt, sampling, place, first.vector.double())
    mean, plain = float(steered @ rewards), float(probabilities(six_words, prompt, sampling) @ rewards)
    assert abs(mean - plain) > 8 * outcome.mean_reward.error, "the two must be told apart"
    assert outcome.mean_reward.value == pytest.approx(mean, abs=4 * outcome.mean_reward.error)
    with pytest.raises(StarError, match="another call"):
        attribute(Condition("first", first, 0.9, place[3]))


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("name", ["plain", "cool", "cool top-p"])
def test_effect_and_drift_of_a_sample_are_the_exact_ones_within_their_standard_errors(
    six_words: HookedTransformer, name: str, reward: str
) -> None:
    options, prompt = OPTIONS[name], PROMPTS[1]
    sampling = dataclasses.replace(options, batch_size=400)
    outcome = star.attribute_outcome(six_words, [prompt], REWARDS[reward], 1600, sampling, least=1600, progress=False)
    texts = [as_reply(six_words, tokens).text for tokens in all_replies()]
    rewards = torch.tensor([REWARDS[reward](outcome.prompts[0], text) for text in texts], dtype=torch.float64)
    before = probabilities(six_words, prompt, options)
    assert outcome.mean_reward.value == pytest.approx(float(before @ rewards), abs=4 * outcome.mean_reward.error)
    off = []
    for seed, place in enumerate(PLACES):
        v = random_vector(six_words, place, seed)

        def moved(strength: float, place: Any = place, v: Any = v) -> Tensor:
            return probabilities(six_words, prompt, options, place, strength * v.vector)

        effect, drift = outcome.effect(v, place[3]), outcome.drift(v, place[3], per_token=False)
        exact = float(slope(moved, 1e-5) @ rewards)
        seen, step = before > 0, 1e-3
        cost = sum(float(before[seen] @ (before[seen] / moved(s)[seen]).log()) for s in (step, -step)) / 2 / step**2
        assert effect.value == pytest.approx(exact, abs=4 * effect.error)
        assert drift.value == pytest.approx(cost, abs=4 * drift.error)
        assert drift.error < 0.2 * cost, "an error so large would hide anything"
        assert outcome.drift(v, place[3]).value * outcome.mean_tokens == pytest.approx(drift.value)
        bought = outcome.gain(v, place[3]).value
        assert bought == pytest.approx(effect.value * (0.1 * outcome.mean_tokens / drift.value) ** 0.5)
        off += [(effect.value - exact) / effect.error, (drift.value - cost) / drift.error]
    assert 0.2 < math.sqrt(sum(x * x for x in off) / len(off)) < 2, "errors of another size than they claim"


def test_a_reward_that_hangs_on_one_head_is_found_at_that_head(write_llama: Callable[..., Path]) -> None:
    model = star.load_model(str(write_llama(num_hidden_layers=2)), dtype="float64")
    layer, head = 0, 2
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            for h in range(model.cfg.n_heads):
                if (i, h) != (layer, head):
                    block.attn.W_O[h] = 0
    reward = lambda prompt, text: float(sum(map(str.isalpha, text)) % 2)  # noqa: E731
    outcome = star.attribute_outcome(
        model, ["the old cat", "a young dog ran"], reward, 120, Sampling(max_new_tokens=4), least=120, progress=False
    )
    gains = outcome.gains("z")
    found = gains.abs().amax(1)
    assert float(found[layer, head]) > 0.01
    found[layer, head] = 0
    assert not bool(found.any())
    frame = outcome.to_frame().query("hook_point == 'z'")
    best = frame.loc[frame.gain.abs().idxmax()]
    assert (best.layer, best["head"]) == (layer, head)


def some_replies(model: Any, lengths: tuple[int, ...] = (4, 0, 6, 1, 6, 3)) -> list[Reply]:
    generator = torch.Generator().manual_seed(0)
    vocabulary = len(model.tokenizer)
    return [
        Reply("", tuple(torch.randint(5, vocabulary, (n,), generator=generator).tolist()), stopped=n != 6)
        for n in lengths
    ]


CHATS = ("Hi there!", "My sister lost her job, and I do not know what to say to her.", "no")
OF = [0, 0, 1, 2, 1, 2]


@pytest.mark.parametrize("name", ["cool", "cool top-p"])
@pytest.mark.parametrize("config", [{}, {"attention_bias": True}, {"head_dim": 16}])
def test_the_written_out_gradient_is_that_of_autograd(
    write_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], name: str
) -> None:
    model = star.load_model(str(write_llama(**config)), dtype="float64")
    by_hand = gradients_of(model, CHATS, some_replies(model), OF, OPTIONS[name], window=8)
    monkeypatch.setattr(gradients, "llama_forward", lambda model: None)
    autograd = gradients_of(model, CHATS, some_replies(model), OF, OPTIONS[name], window=8)
    assert_same(by_hand, autograd)


@pytest.mark.parametrize("family", ["gpt2", "pythia", "qwen-3"])
def test_other_models_give_the_gradients_of_one_row_at_a_time(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = star.load_model(str(families.write_random(family, tmp_path, tokenizer)), dtype="float64")
    options, replies = OPTIONS["cool"], some_replies(model)
    outcome = gradients_of(model, CHATS, replies, OF, options, window=4)
    for row, (i, reply) in enumerate(zip(OF, replies, strict=True)):
        ids = list(render(model.tokenizer, CHATS[i]).ids)
        acts: dict[str, Tensor] = {}
        keep = lambda activation, hook, acts=acts: acts.__setitem__(hook.name, activation)  # noqa: E731
        root = ("hook_embed", lambda activation, hook: activation.detach().requires_grad_())
        hooks = [root, *((f"blocks.{x}.{n}", keep) for x in range(3) for n in ("hook_resid_post", "attn.hook_z"))]
        with torch.enable_grad():
            logits = model.run_with_hooks(torch.tensor([[*ids, *reply.tokens]]), fwd_hooks=hooks)[0]
            logs = (logits[len(ids) - 1 :] / options.temperature).log_softmax(-1)
            value = sum(logs[k, token] for k, token in enumerate(reply.tokens))
            value = value + logs[-1, 3] if reply.stopped else value
            found = torch.autograd.grad(value, list(acts.values()))
        assert float(outcome.log_probs[row]) == pytest.approx(float(value.detach()), abs=1e-9)
        for name, gradient in zip(acts, found, strict=True):
            layer, point = int(name.split(".")[1]), "z" if name.endswith("z") else "resid_post"
            mine = outcome.gradients[point][layer, :, row]
            torch.testing.assert_close(mine[:4], gradient[0, len(ids) - 4 : len(ids)], rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(mine[4], gradient[0, len(ids) - 1 :].sum(0), rtol=1e-6, atol=1e-9)


def test_a_bridge_gives_the_gradients_of_a_hooked_transformer(tiny_folder: Path) -> None:
    hooked, bridge = (star.load_model(str(tiny_folder), backend=name) for name in ("hooked", "bridge"))
    one = gradients_of(hooked, CHATS, some_replies(hooked), OF, OPTIONS["cool"], window=4)
    other = gradients_of(bridge, CHATS, some_replies(hooked), OF, OPTIONS["cool"], window=4)
    assert_same(one, other, rtol=1e-3, atol=1e-5)


def assert_same(one: star.OutcomeMap, other: star.OutcomeMap, rtol: float = 1e-7, atol: float = 1e-10) -> None:
    torch.testing.assert_close(one.log_probs, other.log_probs, rtol=rtol, atol=atol)
    assert set(one.gradients) == set(other.gradients) == {"resid_post", "attn_out", "mlp_out", "z"}
    for point in one.gradients:
        assert float(one.gradients[point].abs().max()) > 1e-2
        torch.testing.assert_close(one.gradients[point], other.gradients[point], rtol=rtol, atol=atol)
        torch.testing.assert_close(one.norms[point], other.norms[point], rtol=max(rtol, 1e-6), atol=atol)


def test_the_baseline_is_the_mean_of_the_prompts_other_replies() -> None:
    rewards = torch.tensor([1.0, 4.0, 2.0, 8.0, 3.0, 5.0]).double()
    prompt = torch.tensor([0, 1, 0, 1, 0, 2])
    others = [[k for k in range(6) if prompt[k] == prompt[i] and k != i] for i in range(6)]
    wanted = [float(rewards[i] - rewards[o].mean()) if o else 0.0 for i, o in enumerate(others)]
    assert estimate.advantages(rewards, prompt).tolist() == pytest.approx(wanted)


def test_standard_errors_are_those_of_repeated_samples_with_prompts_that_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    prompt = torch.arange(240) % 30
    values = torch.randn(400, 30, generator=generator)[:, prompt] + torch.randn(400, 240, generator=generator)
    claimed = estimate.standard_error(values.double(), prompt)
    assert float(claimed.mean()) == pytest.approx(float(values.mean(1).std()), rel=0.1)


def planted(n: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of unequal spread, a direction, its second moments, and rewards that follow it."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1, 1, 12, dtype=torch.float64)
    g = torch.randn(n, 12, dtype=torch.float64, generator=generator) * scales
    w = 1 / scales
    rewards = g @ w + noise * torch.randn(n, dtype=torch.float64, generator=generator)
    return g, w, scales.square(), rewards, torch.arange(n) % 20


def test_the_natural_gradient_finds_the_direction_that_gains_most() -> None:
    g, w, second, rewards, prompt = planted(800, 1.0)
    advantage, tokens = estimate.advantages(rewards, prompt), 40.0
    ridge = estimate.best_ridge(g, rewards, prompt, tokens)
    natural, plain = estimate.natural_directions(g, advantage, (ridge, math.inf))
    torch.testing.assert_close(plain, advantage @ g / len(g))

    def gain(v: Tensor) -> float:
        return float((v * second) @ w / (v.square() @ second).sqrt()) * math.sqrt(0.2 * tokens)

    assert gain(natural) > 0.8 * gain(w) > 1.2 * gain(plain), "w is the best of all directions"
    fitted = estimate.cross_fit_natural(g, rewards, prompt, tokens, ridge)
    error = float(estimate.standard_error(fitted.influence, prompt)[0])
    assert float(fitted.gain) == pytest.approx(gain(natural), abs=4 * error)


@pytest.mark.parametrize("n", [50, 8], ids=["more replies than dimensions", "fewer"])
def test_natural_directions_solve_the_ridge_equation(n: int) -> None:
    g, *_, rewards, prompt = planted(n, 1.0)
    prompt = prompt % 4
    advantage = estimate.advantages(rewards, prompt)
    second = g.T @ g / len(g)
    ridge = 0.03
    wanted = torch.linalg.solve(second + ridge * second.trace() * torch.eye(12).double(), g.T @ advantage / len(g))
    torch.testing.assert_close(estimate.natural_directions(g, advantage, (ridge,))[0], wanted)


def test_a_gain_that_is_only_noise_is_not_claimed() -> None:
    """In the sample that they were made from directions gain much; cross-fitted, nothing but their error."""
    off, flattering = [], []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        g = torch.randn(160, 3, 40, dtype=torch.float64, generator=generator)
        rewards, prompt = torch.randn(160, dtype=torch.float64, generator=generator), torch.arange(160) % 20
        fit = estimate.cross_fit_plain(g, rewards, prompt, 40.0)
        off += (fit.gain / estimate.standard_error(fit.influence, prompt)).tolist()
        advantage = estimate.advantages(rewards, prompt)
        v = torch.einsum("r,rd->d", advantage, g[:, 0])
        made = estimate.gain_of(g[:, 0] @ v, advantage, torch.full((160,), 40), prompt)
        flattering.append(made.value / made.error)
    assert abs(sum(off) / len(off)) < 0.5
    assert sum(flattering) / len(flattering) > 3


def count_c(prompt: Any, text: str) -> float:
    return float(text.count("c"))


@pytest.fixture(scope="module")
def sampled(six_words: HookedTransformer) -> star.OutcomeMap:
    return star.attribute_outcome(six_words, PROMPTS, count_c, 96, OPTIONS["plain"], least=96, progress=False)


def test_a_direction_costs_what_it_says_and_becomes_a_vector(
    six_words: HookedTransformer, sampled: star.OutcomeMap
) -> None:
    large = star.attribute_outcome(
        six_words, PROMPTS, count_c, 900, OPTIONS["plain"], seed=7, least=900, progress=False
    )
    for positions, method in itertools.product((None, "generated"), ("plain", "natural")):
        found = sampled.direction(sampled.top_locus(positions), positions, method)
        fresh = large.drift(found, positions)
        assert fresh.value == pytest.approx(0.1, rel=0.5)
        assert large.gain(found, positions).value > 0
        vector = star.extract_outcome_vector(sampled, positions=positions, method=method)
        vector.check(six_words)
        torch.testing.assert_close(vector.vector.double(), found.vector.double(), rtol=1e-6, atol=0)
        assert vector.trait == "count_c"
        assert sampled.effect(vector, positions).value == pytest.approx(
            sampled.effect(found, positions).value, rel=1e-5
        )
    several = star.extract_outcome_vector(sampled, Locus("blocks.0.hook_resid_post", (-3, -1)))
    assert several.vector.shape == (2, 16)
    z = star.extract_outcome_vector(sampled, Locus("blocks.1.attn.hook_z", (-1,), 3))
    assert z.vector.shape == (1, 4)


@pytest.mark.parametrize("positions", [None, "generated"])
def test_one_reward_is_raised_without_another_and_two_together(sampled: star.OutcomeMap, positions: str | None) -> None:
    other = torch.tensor([REWARDS["continuous"]("", text) for text in sampled.replies], dtype=torch.float64)
    b = dataclasses.replace(sampled, rewards=other, reward="continuous")
    locus = Locus("blocks.0.hook_resid_post", (-1,))
    v, w = (star.extract_outcome_vector(outcome, locus, positions) for outcome in (sampled, b))
    alone = star.project_off(v, w)
    assert abs(b.effect(v, positions).value) > 100 * abs(b.effect(alone, positions).value), "along v it would move"
    assert sampled.effect(alone, positions).value > 0
    both = star.combine([alone, w], [1.0, 2.0])
    assert b.effect(both, positions).value == pytest.approx(2 * b.effect(w, positions).value, rel=1e-3)
    raised = sampled.effect(alone, positions).value + 2 * sampled.effect(w, positions).value
    assert sampled.effect(both, positions).value == pytest.approx(raised, rel=1e-3)


def test_a_vector_at_other_positions_is_added_as_its_hooks_do(sampled: star.OutcomeMap) -> None:
    rows = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v = SimpleNamespace(vector=rows, locus=Locus("blocks.0.hook_resid_post", (-3, -1)))
    mean = SimpleNamespace(vector=rows.mean(0, keepdim=True), locus=Locus("blocks.0.hook_resid_post", (-1,)))
    apart = [
        SimpleNamespace(vector=rows[[k]], locus=Locus("blocks.0.hook_resid_post", (p,))) for k, p in ((0, -3), (1, -1))
    ]
    assert sampled.effect(v).value == pytest.approx(sum(sampled.effect(x).value for x in apart))
    assert sampled.effect(v, [-1, -3]).value == pytest.approx(sampled.effect(v).value)
    assert sampled.effect(v, "generated").value == pytest.approx(sampled.effect(mean, "generated").value)
    assert sampled.effect(v, "last_prompt").value == pytest.approx(sampled.effect(mean).value)
    assert sampled.effect(mean).value == sampled.effect(mean, "locus").value


def test_it_goes_on_where_it_was_and_writes_no_reply_twice(
    six_words: HookedTransformer, sampled: star.OutcomeMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from star_tl.attribution.outcome import sample

    counted: list[int] = []
    inner = sample.in_batches

    def counting(model: Any, prompts: Any, *rest: Any) -> Any:
        counted.append(len(prompts))
        return inner(model, prompts, *rest)

    monkeypatch.setattr(sample, "in_batches", counting)
    out = tmp_path / "replies.jsonl"

    def attribute(n: int, **more: Any) -> star.OutcomeMap:
        return star.attribute_outcome(
            six_words, PROMPTS, count_c, n, OPTIONS["plain"], least=n, out=out, progress=False, **more
        )

    attribute(60)
    whole = out.read_text()
    out.write_text(whole[: len(whole) // 2])
    kept = out.read_text().count("\n") - 1
    found = attribute(96)
    assert counted == [60, 96 - kept]
    assert found.replies == sampled.replies
    torch.testing.assert_close(found.gradients["z"], sampled.gradients["z"])
    with pytest.raises(StarError, match="another call"):
        attribute(96, seed=1)


def test_it_stops_where_the_best_layers_are_apart(
    six_words: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def after(number: int) -> property:
        def apart(self: star.OutcomeMap) -> bool:
            looks.append(len(self.replies))
            return len(looks) == number

        return property(apart)

    monkeypatch.setattr(star.OutcomeMap, "apart", after(2))
    found = star.attribute_outcome(six_words, PROMPTS, count_c, 96, OPTIONS["plain"], progress=False)
    assert looks == [24, 48]
    assert len(found.replies) == 48
    assert "best layers apart" in repr(found)
    looks.clear()
    monkeypatch.setattr(star.OutcomeMap, "apart", after(9))
    spent = star.attribute_outcome(six_words, PROMPTS, count_c, 96, OPTIONS["plain"], progress=False)
    assert "budget spent" in repr(spent)
    assert spent.replies[:48] == found.replies, "rounds do not change what is drawn"


def test_layers_are_apart_only_where_one_gains_clearly_more(sampled: star.OutcomeMap) -> None:
    generator = torch.Generator().manual_seed(0)
    n, layers = 200, 6
    rewards = torch.randn(n, generator=generator).double()
    noise = torch.randn(layers, 3, n, 16, dtype=torch.float64, generator=generator)
    clear = noise.clone()
    clear[2] += 3 * rewards[:, None]  # there the reply's gradient says how it is rewarded
    prompt = torch.arange(n) % 20
    made = dict.fromkeys(("replies", "prompt", "rewards", "tokens", "log_probs"))
    for gradients_, wanted in ((noise, False), (clear, True)):
        made = dataclasses.replace(
            sampled,
            prompts=tuple(sampled.prompts[:1]) * 20,
            prompt=prompt,
            replies=("",) * n,
            rewards=rewards,
            tokens=torch.full((n,), 3),
            log_probs=torch.zeros(n),
            gradients={"resid_post": gradients_},
            norms={"resid_post": torch.ones(layers, 3)},
        )
        assert made.apart == wanted
        if wanted:
            assert made.top_locus().layer == made.top_locus("generated").layer == 2


def test_a_map_comes_back_as_it_was_saved(sampled: star.OutcomeMap, tmp_path: Path) -> None:
    path = tmp_path / "outcome.safetensors"
    sampled.save(path)
    loaded = star.OutcomeMap.load(path)
    for field in dataclasses.fields(star.OutcomeMap):
        mine, theirs = getattr(sampled, field.name), getattr(loaded, field.name)
        if field.name in ("gradients", "norms"):
            assert set(mine) == set(theirs)
            for point in mine:
                torch.testing.assert_close(mine[point], theirs[point], rtol=0, atol=0)
        elif isinstance(mine, Tensor):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        else:
            assert mine == theirs
    assert repr(loaded) == repr(sampled)
    path.write_bytes(b"nothing")
    with pytest.raises(StarError, match="cannot be read"):
        star.OutcomeMap.load(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": "much"},
        {"budget": "0"},
        {"sampling": "[" * 9000},
        {"sampling": '{"temperature": -1, "stop": []}'},
        {"kept": "null"},
        {"kept": '{"nowhere": "resid_post"}'},
        {"prompts": "[1]"},
        {"prompts": "[]"},
        {"replies": "[1]"},
        {"reward": None},
        {"format": "star_tl outcome 0"},
    ],
    ids=str,
)
def test_a_damaged_or_edited_map_is_refused_in_one_line(
    sampled: star.OutcomeMap, tmp_path: Path, changed: dict[str, str | None]
) -> None:
    path = tmp_path / "outcome.safetensors"
    sampled.save(path)
    with safe_open(str(path), framework="pt") as file:
        meta = {k: v for k, v in (file.metadata() | changed).items() if v is not None}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    save_file(tensors, str(path), metadata=meta)
    with pytest.raises(star.StarError, match=r"^[^\n]*outcome\.safetensors[^\n]*$"):
        star.OutcomeMap.load(path)


def test_half_precision_gradients_change_no_estimate(six_words: HookedTransformer, sampled: star.OutcomeMap) -> None:
    halved = dataclasses.replace(sampled, gradients={p: g.bfloat16() for p, g in sampled.gradients.items()})
    for place in PLACES:
        v = random_vector(six_words, place)
        for name in ("effect", "drift", "gain"):
            whole, half = (getattr(x, name)(v, place[3]) for x in (sampled, halved))
            assert half.value == pytest.approx(whole.value, abs=0.05 * whole.error)


def test_rewards_are_taken_one_by_one_or_all_at_once() -> None:
    prompts, texts = [({"role": "user", "content": "x"},)] * 2, ["one", "three"]

    def each(prompt: Any, text: str) -> Any:
        assert prompt == prompts[0]
        return torch.tensor(len(text))

    def together(many: Any, replies: Any) -> Any:
        assert many == prompts
        return torch.tensor([float(len(r)) for r in replies])

    together.batched = True  # type: ignore[attr-defined]
    assert rewards_of(each, prompts, texts).tolist() == rewards_of(together, prompts, texts).tolist() == [3, 5]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda prompt, text: float("nan"), "is nan: return a finite number"),
        (lambda prompt, text: None, "is None: return a finite number"),
        (lambda prompt, text: "much", "is 'much': return a finite number"),
    ],
)
def test_a_reward_that_is_no_number_is_refused(reward: Any, message: str) -> None:
    with pytest.raises(StarError, match=message):
        rewards_of(reward, ["a"], ["b"])


def test_a_batched_reward_of_another_length_is_refused() -> None:
    def few(prompts: Any, texts: Any) -> list[float]:
        return [1.0]

    few.batched = True  # type: ignore[attr-defined]
    with pytest.raises(StarError, match="gave 1 numbers for 2 replies"):
        rewards_of(few, ["a", "a"], ["b", "c"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"n": 5}, "too few for 3 prompts: use at least 12"),
        ({"least": 97}, "least is 97: use 12 to 96"),
        ({"sampling": Sampling(temperature=0)}, "temperature above 0"),
        ({"sampling": Sampling(repetition_penalty=1.2)}, "leave it at 1"),
        ({"sampling": Sampling(stop=("a",))}, "leave stop out"),
        ({"hook_points": ["resid"]}, "Did you mean 'resid_post'"),
        ({"hook_points": []}, "There are no hook points"),
        ({"prompts": []}, "no prompts"),
        ({"under": Condition(instruction="Be brief.")}, "no instruction and no span"),
        ({"reward": lambda prompt, text: math.inf}, "finite number"),
    ],
)
def test_what_cannot_be_attributed_is_refused_in_one_line(six_words: Any, more: dict[str, Any], message: str) -> None:
    call = {"prompts": PROMPTS, "reward": count_c, "n": 96, "sampling": OPTIONS["plain"], "progress": False} | more
    with pytest.raises(StarError, match=message) as error:
        star.attribute_outcome(six_words, call.pop("prompts"), call.pop("reward"), **call)
    assert "\n" not in str(error.value)


def test_too_little_memory_is_found_before_anything_is_sampled(six_words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from star_tl.attribution import outcome

    monkeypatch.setattr(outcome, "free_memory", lambda device: 1e5)
    with pytest.raises(StarError, match=r"take 0\.0 GB and 0\.0 are free: use fewer"):
        star.attribute_outcome(six_words, PROMPTS, count_c, 96, OPTIONS["plain"], progress=False)


def at(name: str, positions: tuple[int, ...] = (-1,), head: int | None = None, width: int = 16) -> Any:
    return SimpleNamespace(vector=torch.ones(len(positions), width), locus=Locus(name, positions, head))


@pytest.mark.parametrize(
    ("vector", "positions", "message"),
    [
        (at("blocks.0.hook_resid_pre"), None, "no gradients at 'resid_pre'"),
        (at("blocks.2.hook_resid_post"), None, "has 2 layers"),
        (at("blocks.0.attn.hook_z", head=9, width=4), None, "no head 9"),
        (at("blocks.0.hook_resid_post", (-9,)), None, "use -6 to -1"),
        (at("blocks.0.hook_resid_post"), "decay 4", "knows no positions 'decay 4'"),
        (at("blocks.0.hook_resid_post", width=15), None, "has width 15"),
    ],
)
def test_a_place_that_the_map_does_not_hold_is_refused(
    sampled: star.OutcomeMap, vector: Any, positions: Any, message: str
) -> None:
    with pytest.raises(StarError, match=message):
        sampled.effect(vector, positions)


def test_a_direction_is_refused_where_there_is_none(sampled: star.OutcomeMap) -> None:
    locus = sampled.top_locus()
    with pytest.raises(StarError, match="Unknown method 'best'"):
        sampled.direction(locus, method="best")
    with pytest.raises(StarError, match="use 'generated', or a locus"):
        sampled.direction(locus, "all")
    flat = dataclasses.replace(sampled, rewards=torch.ones(96).double())
    with pytest.raises(StarError, match="the same for every reply"):
        flat.direction(locus)
    with pytest.raises(StarError, match="Nothing at"):
        sampled.direction(Locus("blocks.1.hook_resid_post", (-2,)))  # the last layer's, which nothing reads


def test_where_memory_runs_out_half_the_batch_gives_the_same(
    six_words: HookedTransformer, sampled: star.OutcomeMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the norms, which are added up while a batch that then fails is read."""
    through, sizes = gradients.reply_gradients, []

    def short_of_memory(model: Any, rows: gradients.Rows, *others: Any) -> Tensor:
        value = through(model, rows, *others)
        sizes.append(len(rows.tokens))
        if len(rows.tokens) > 7:
            raise torch.OutOfMemoryError
        return value

    monkeypatch.setattr(gradients, "reply_gradients", short_of_memory)
    with pytest.warns(UserWarning, match="Memory ran out at"):
        halved = star.attribute_outcome(six_words, PROMPTS, count_c, 96, OPTIONS["plain"], least=96, progress=False)
    assert max(sizes) > 7
    assert sizes[-1] <= 7
    for point, gradient in sampled.gradients.items():
        torch.testing.assert_close(halved.gradients[point], gradient)
        torch.testing.assert_close(halved.norms[point], sampled.norms[point])
    torch.testing.assert_close(halved.log_probs, sampled.log_probs)


def test_layers_of_which_nothing_was_seen_are_not_apart(six_words: HookedTransformer) -> None:
    """A reward that is the same for all replies of the first round: more are written, as long as there is a budget."""
    found = star.attribute_outcome(six_words, PROMPTS, lambda chat, text: 1.0, 96, OPTIONS["plain"], progress=False)
    assert not found.apart
    assert len(found.replies) == 96
    assert "apart" not in repr(found).replace("not apart", "")


def test_gradients_are_taken_under_inference_mode_too(six_words: HookedTransformer) -> None:
    outside = star.attribute_outcome(six_words, PROMPTS, count_c, 24, OPTIONS["plain"], progress=False)
    with torch.inference_mode():
        inside = star.attribute_outcome(six_words, PROMPTS, count_c, 24, OPTIONS["plain"], progress=False)
    torch.testing.assert_close(inside.gradients["resid_post"], outside.gradients["resid_post"], rtol=0, atol=0)
    assert not inside.gradients["resid_post"].is_inference()


def test_prompts_that_are_rendered_alike_are_one_prompt(demo: Any) -> None:
    twice = ["I lost my job today.", "I lost my job today. ", "Hello."]
    found = star.attribute_outcome(
        demo, twice, lambda chat, text: float(len(text)), 12, Sampling(max_new_tokens=4), progress=False
    )
    assert len(found.prompts) == 2


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda x: np.float32(x[0]), lambda x: torch.tensor(x[0])])
def test_one_number_is_a_reward_in_whatever_it_comes(kind: Callable[..., Any]) -> None:
    assert rewards_of(lambda chat, text: kind([2.0]), ["x", "y"], ["a", "b"]).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("wrong", [np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), "1", None, float("nan"), [1.0]])
def test_what_is_no_number_is_refused_as_a_reward_in_one_line(wrong: object) -> None:
    with pytest.raises(StarError, match=r"^The reward of the reply 'a' is [^\n]+: return a finite number\.$"):
        rewards_of(lambda chat, text: wrong, ["x"], ["a"])
    together = type("Reward", (), {"batched": True, "__call__": lambda self, chats, texts: None})()
    with pytest.raises(StarError, match=r"^The reward gave None for 1 replies: return one number for each\.$"):
        rewards_of(together, ["x"], ["a"])
