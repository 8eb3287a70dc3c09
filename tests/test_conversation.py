"""Steered chats: a clean reading before each reply, against a real cache that goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hf_reference import of

from star_tl import conversation
from star_tl.chat import render
from star_tl.conversation import converse
from star_tl.errors import StarError
from star_tl.locus import Locus
from star_tl.scores import kl_per_token

TURNS = ("My cat is ill.", "She is nine.", "What would you do?")


@pytest.fixture(scope="module")
def vector():
    return of(torch.randn(1, 32, generator=torch.Generator().manual_seed(2)), Locus("blocks.1.hook_resid_post"))


FACTORS: dict[str | None, Callable[[int], float]] = {  # of the vector at position p, from the last prompt token (-1) on
    None: lambda p: float(p == -1),
    "generated": lambda p: 1.0,
    "first 3": lambda p: float(p < 2),
    "every 2": lambda p: float(p % 2),
    "decay 2": lambda p: 0.5 ** ((p + 1) / 2),
}


@torch.no_grad()
def logits(model, ids: tuple[int, ...], added: torch.Tensor, factors: dict[int, float]) -> torch.Tensor:
    """Logits [position, vocab] of one pass that adds the vector by these factors at these columns."""

    def add(activation, hook):
        for column, factor in factors.items():
            activation[:, column] += factor * added
        return activation

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", add)]):
        return model(torch.tensor([ids]))[0]


@pytest.mark.parametrize("carry", [False, True], ids=["read again", "carried on"])
@pytest.mark.parametrize("positions", FACTORS)
def test_every_turn_sees_the_chat_steered_where_it_should_be(tiny, vector, positions, carry: bool, monkeypatch) -> None:
    written = []
    generate = conversation.generate
    monkeypatch.setattr(conversation, "generate", lambda *a, **o: written.append(generate(*a, **o)) or written[-1])
    table = converse(tiny, TURNS, vector, 2.0, positions, carry, max_new_tokens=5, temperature=0)
    assert list(table.turn) == [1, 2, 3]
    chat, earlier = [], {}
    for turn, (reply,) in zip(table.itertuples(), written, strict=True):
        chat.append({"role": "user", "content": turn.user})
        prompt = render(tiny.tokenizer, chat)
        assert len(reply.tokens) == turn.n_tokens == 5
        ids, end = prompt.ids + reply.tokens, len(prompt.ids)
        own = {end + p: FACTORS[positions](p) for p in range(-1, 5)}
        steered = logits(tiny, ids, 2.0 * vector.vector[0], (earlier if carry else {}) | own)[end - 1 : -1]
        assert tuple(steered.argmax(-1).tolist()) == reply.tokens
        plain = logits(tiny, ids, vector.vector[0], {})[end - 1 : -1]
        assert turn.drift == pytest.approx(float(kl_per_token(steered, plain).mean()), rel=1e-3)
        assert turn.drift > 0.01
        chat.append({"role": "assistant", "content": turn.reply})
        again = render(tiny.tokenizer, chat).spans[-2]  # header, reply and end of turn, as the next turn reads them
        length = len(again) - len(prompt.spans[-1]) - 1
        earlier |= {end + p: FACTORS[positions](p) for p in range(-1, length)}
    other = converse(tiny, TURNS, vector, 2.0, positions, not carry, max_new_tokens=5, temperature=0)
    assert table.reply[0] == other.reply[0]
    assert table.drift[0] == pytest.approx(other.drift[0])
    assert abs(table.drift[2] - other.drift[2]) > 1e-4


def test_without_a_vector_nothing_drifts(tiny) -> None:
    assert (converse(tiny, TURNS, max_new_tokens=4).drift == 0).all()


@pytest.mark.parametrize(
    ("turns", "options", "message"),
    [
        ([], {}, "turn by turn"),
        ("hello", {}, "turn by turn"),
        (TURNS, {"positions": "all"}, "covers earlier turns"),
        (TURNS, {"positions": "nowhere"}, "Unknown positions"),
    ],
)
def test_what_cannot_be_is_refused(tiny, vector, turns, options, message: str) -> None:
    with pytest.raises(StarError, match=message):
        converse(tiny, turns, vector, **options)
    several = of(torch.randn(2, 32), Locus("blocks.1.hook_resid_post", (-2, -1)))
    with pytest.raises(StarError, match="one row"):
        converse(tiny, TURNS, several)
