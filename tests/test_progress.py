"""A Ctrl-C while a bar is drawn holds up no bar after it."""

from __future__ import annotations

import threading

import pytest

from star_tl.progress import Bar


@pytest.mark.parametrize("disable", [False, True])
def test_an_interrupt_while_a_bar_is_drawn_leaves_it_to_others(monkeypatch, disable: bool) -> None:
    bar = Bar(total=3, mininterval=0)

    def interrupted(self, *args: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bar, "display", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bar.refresh()

    def later() -> None:
        with Bar(total=1, mininterval=0, disable=disable) as other:
            other.update(1)

    thread = threading.Thread(target=later, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    bar.close()


def test_a_bar_counts_and_says_so(capsys) -> None:
    for _ in Bar(range(3), desc="rounds", mininterval=0):
        pass
    assert "rounds: 100%" in capsys.readouterr().err
