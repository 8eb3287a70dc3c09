"""Steered chats: a clean reading before each reply, against a real cache that goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hf_reference import of

from star_tl.data.chat import render
from star_tl.errors import StarError
from star_tl.evaluation import conversation
from star_tl.evaluation.conversation import converse
from star_tl.generation.likelihood import kl_per_token
from star_tl.locus import Locus
from star_tl.steering.condition import Condition

TURNS = ("My cat is ill.", "She is nine.", "What would you do?")


def vector_of(rows: int):
    values = torch.randn(rows, 32, generator=torch.Generator().manual_seed(2))
    return of(values, Locus("blocks.1.hook_resid_post", tuple(range(-rows, 0))))


@pytest.fixture(scope="module")
def vector():
    return vector_of(1)


FACTORS: dict[str | None, Callable[[int], float]] = {  # of the vector at position p, from the last prompt token (-1) on
    None: lambda p: float(p == -1),
    "generated": lambda p: 1.0,
    "first 3": lambda p: float(p < 2),
    "every 2": lambda p: float(p % 2),
    "decay 2": lambda p: 0.5 ** ((p + 1) / 2),
}


@torch.no_grad()
def logits(model, ids: tuple[int, ...], added: dict[int, torch.Tensor]) -> torch.Tensor:
    """Logits [position, vocab] of one pass that adds these at these columns."""

    def add(activation, hook):
        for column, row in added.items():
            activation[:, column] += row
        return activation

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", add)]):
        return model(torch.tensor([ids]))[0]


def added_at(vector, positions: str | None, columns: range, end: int) -> dict[int, torch.Tensor]:
    """What twice the vector adds at those of these columns that the schedule means."""
    if positions is None and len(vector.vector) > 1:
        rows = dict(zip(vector.locus.positions, vector.vector, strict=True))
    else:
        rows = {p: FACTORS[positions](p) * vector.vector.mean(0) for p in range(-1, columns.stop - end)}
    return {column: 2.0 * rows[column - end] for column in columns if column - end in rows}


@pytest.mark.parametrize("carry", [False, True], ids=["read again", "carried on"])
@pytest.mark.parametrize(("rows", "positions"), [(1, p) for p in FACTORS] + [(2, None), (2, "decay 2")])
def test_every_turn_sees_the_chat_steered_where_it_should_be(
    tiny, rows: int, positions, carry: bool, monkeypatch
) -> None:
    vector = vector_of(rows)
    written = []
    generate = conversation.generate
    monkeypatch.setattr(conversation, "generate", lambda *a, **o: written.append(generate(*a, **o)) or written[-1])
    table = converse(
        tiny, TURNS, Condition("steered", vector, 2.0, positions), carry=carry, max_new_tokens=5, temperature=0
    )
    assert list(table.turn) == [1, 2, 3]
    chat, earlier = [], {}
    for turn, (reply,) in zip(table.itertuples(), written, strict=True):
        chat.append({"role": "user", "content": turn.user})
        prompt = render(tiny.tokenizer, chat)
        assert len(reply.tokens) == turn.n_tokens == 5
        ids, end = prompt.ids + reply.tokens, len(prompt.ids)
        own = added_at(vector, positions, range(end - 2, end + 5), end)
        steered = logits(tiny, ids, (earlier if carry else {}) | own)[end - 1 : -1]
        assert tuple(steered.argmax(-1).tolist()) == reply.tokens
        plain = logits(tiny, ids, {})[end - 1 : -1]
        assert turn.drift == pytest.approx(float(kl_per_token(steered, plain).mean()), rel=1e-3)
        assert turn.drift > 0.01
        chat.append({"role": "assistant", "content": turn.reply})
        again = render(tiny.tokenizer, chat).spans[-2]  # header, reply and end of turn, as the next turn reads them
        length = len(again) - len(prompt.spans[-1]) - 1
        earlier |= added_at(vector, positions, range(end - 2, end + length), end)
    other = converse(
        tiny, TURNS, Condition("steered", vector, 2.0, positions), carry=not carry, max_new_tokens=5, temperature=0
    )
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
        converse(tiny, turns, Condition("steered", vector, **options))
