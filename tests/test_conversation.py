"""Steered chats: a clean reading before each reply, against a real cache that goes on."""

from __future__ import annotations

import pytest
import torch
from hf_reference import of

from star_tl.batch import unembed
from star_tl.chat import render
from star_tl.conversation import converse
from star_tl.errors import StarError
from star_tl.locus import Locus

TURNS = ("My cat is ill.", "She is nine.", "What would you do?")


@pytest.fixture(scope="module")
def vector():
    return of(torch.randn(1, 32, generator=torch.Generator().manual_seed(2)), Locus("blocks.1.hook_resid_post"))


@torch.no_grad()
def last_logits(model, ids: tuple[int, ...], added: torch.Tensor, columns: list[int]) -> torch.Tensor:
    def add(activation, hook):
        activation[:, columns] += added
        return activation

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", add)] if columns else []):
        residual = model(torch.tensor([ids]), stop_at_layer=model.cfg.n_layers)
    return unembed(model, residual[:, -1:])[0, 0]


@pytest.mark.parametrize("carry", [False, True])
def test_every_turn_sees_the_chat_steered_where_it_should_be(tiny, vector, carry: bool) -> None:
    table = converse(tiny, TURNS, vector, 2.0, carry=carry, max_new_tokens=5, temperature=0)
    assert list(table.turn) == [1, 2, 3]
    chat, ends, first = [], [], []
    for turn in table.itertuples():
        chat.append({"role": "user", "content": turn.user})
        ids = render(tiny.tokenizer, chat).ids
        ends.append(len(ids) - 1)
        logits = last_logits(tiny, ids, 2.0 * vector.vector[0], ends if carry else ends[-1:])
        first.append(int(logits.argmax()))
        assert tiny.tokenizer.decode([first[-1]]).strip() in turn.reply or turn.n_tokens == 0
        assert turn.drift > 0
        chat.append({"role": "assistant", "content": turn.reply})
    other = converse(tiny, TURNS, vector, 2.0, carry=not carry, max_new_tokens=5, temperature=0)
    assert table.reply[0] == other.reply[0]
    assert table.drift[0] == pytest.approx(other.drift[0])
    assert abs(table.drift[2] - other.drift[2]) > 1e-6


def test_without_a_vector_nothing_drifts(tiny) -> None:
    assert (converse(tiny, TURNS, max_new_tokens=4).drift == 0).all()


def test_generated_tokens_of_earlier_turns_stay_steered_when_carried(tiny, vector) -> None:
    clean, carried = (
        converse(tiny, TURNS, vector, 0.5, "generated", carry, max_new_tokens=6, temperature=0)
        for carry in (False, True)
    )
    assert clean.reply[0] == carried.reply[0]
    assert clean.drift[1] != pytest.approx(carried.drift[1], rel=1e-3)


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
