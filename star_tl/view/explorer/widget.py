"""The Jupyter widget: see where a trait is carried, click a place, hear the model change.

The page (``widget.js``) shows what the widget's traits hold and sends back what was clicked; the widget is
the truth. Work runs in a thread that gives way: a second click, Stop, or a cell that runs ends it at
its next tensor operation, because hooks belong to the model and all of these use the same one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from star_tl.attribution import AttributionMap, attribute
from star_tl.data.chat import Message, as_messages, render, resolve_span
from star_tl.data.pairs import Pairs, load_pairs
from star_tl.errors import StarError, check_kind, shown
from star_tl.evaluation.intervention import InterventionChoice
from star_tl.files import JsonObject
from star_tl.generation.sampling import render_prompts, stream
from star_tl.generation.writing import Reply
from star_tl.locus import Locus
from star_tl.models.backend import MODELS, Model, tokenizer_of
from star_tl.steering.hooks import row_hooks
from star_tl.steering.positions import read_positions, schedule
from star_tl.vectors import SteeringVector
from star_tl.view.explorer.doses import Chosen
from star_tl.view.explorer.first import chosen_by_replies, find_first, settle
from star_tl.view.explorer.heads import attention_of
from star_tl.view.explorer.known import Known
from star_tl.view.explorer.maps import own_pair, suggestion, view
from star_tl.view.explorer.offers import CHOOSER, first_settings, offers, sampling_of
from star_tl.view.explorer.page import Page
from star_tl.view.explorer.replies import Card, Run, cards, measured, run_of, text_of
from star_tl.view.explorer.snapshot import free_page, write_snapshot
from star_tl.view.explorer.still import still
from star_tl.view.explorer.ways import (
    TOGETHER,
    all_in_code,
    free_path,
    hooks_of,
    ladder_of,
    reply_in_code,
    ways_of,
)
from star_tl.view.plots import LOCUS_COLOURS

FIRST_PROMPTS = 12  # of which the first minute's is one
OWN = -2  # the "pair" that is the user's own prompt
FRAME = 0.08  # seconds between two updates of a streamed reply


def explore(
    model: Model, pairs: Pairs | str | Path, attr: AttributionMap | InterventionChoice | None = None
) -> Explorer:
    """The widget, for JupyterLab, Notebook 7 and VS Code.

        star.explore(model, "emotional_support")

    Args:
        model: from :func:`star_tl.load_model`.
        pairs: from :func:`star_tl.load_pairs`, or what that takes; their extraction split gives maps, vectors and
            dose–response.
        attr: an attribution map of these pairs, where you have one; default: attribute now. Or what
            :func:`star_tl.choose_intervention` chose, which is shown first then.
    """
    check_kind(model, MODELS, "a model that load_model returns")
    if not isinstance(pairs, Pairs):
        pairs = load_pairs(pairs)
    if attr is not None:
        check_kind(
            attr,
            (AttributionMap, InterventionChoice),
            "a map that attribute returns, or a choice of choose_intervention",
        )
    choice = attr if isinstance(attr, InterventionChoice) else None
    known = attr if isinstance(attr, AttributionMap) else choice.attribution if choice else None
    if known is not None:
        known.check(model)
    return Explorer(model, pairs, known if known is not None else attribute(model, pairs), choice)


class Explorer(Page):
    """What :func:`explore` shows; ``vectors`` are those of the selected loci."""

    def __init__(
        self, model: Model, pairs: Pairs, attr: AttributionMap, choice: InterventionChoice | None = None
    ) -> None:
        super().__init__()
        self._choice = choice
        self._model, self._pairs = model, pairs
        self._maps: dict[str, AttributionMap] = {attr.method: attr}
        self._suggested: dict[str, JsonObject] = {}
        self._chosen: list[Chosen] = []
        self._known = Known(model, pairs, attr.window, lambda words, share: self._say(words, share, busy=True))
        # One place for every click: another estimator suggests other layers, not near-duplicates of what is selected.
        self._place = attr.top_locus().positions if attr.prices_layers else (-1,)
        self._under: tuple[JsonObject, list[dict[str, str]]] | None = None  # settings and chat of what is shown
        self.about = offers(model, pairs, attr, self._place, len(self._known.practice))
        component = view(attr, "classical", None, None)["component"]
        self.settings = first_settings(pairs, attr.method, cast(str, component))
        self._draw_map({})
        self._open()

    @property
    def vectors(self) -> list[SteeringVector]:
        """The steering vectors of the selected loci."""
        return [self._known.vector(chosen) for chosen in self._chosen]

    def snapshot(self, path: str | Path | None = None) -> list[Path]:
        """Write what is shown as one HTML file that needs no network, and its replies as CSV beside it.

        Args:
            path: the HTML file; default the trait's name, with a number where that is taken.

        Raises:
            StarError: nothing was written yet, or the file cannot be written.
        """
        if not self.replies:
            raise StarError("There is nothing to save yet: write replies first.")
        chosen = Path(path) if path is not None else free_page(self._pairs.trait.name)
        curves = {c.name: table for c in self._chosen if (table := self._known.curve(c)) is not None}
        settings, chat = self._answered()
        ready = [(c, self._resolved(c.positions, chat)) for c in self._chosen if c.vector]
        together = any(card["key"] == TOGETHER for card in self.replies)
        code = all_in_code(str(self._model.cfg.model_name), self._pairs.trait.name, ready, together, chat, settings)
        attr = self._maps[self.settings["estimator"]]
        shown = cast(list[Card], self.replies)
        return write_snapshot(chosen, self.about["heading"], attr, chat, shown, curves, code)

    def __repr__(self) -> str:
        loci = "; ".join(c.name for c in self._chosen) or "no locus selected"
        return f"Explorer({self._pairs.trait.name} in {self._model.cfg.model_name}: {loci})"

    def _still(self) -> str:
        """What is shown, as HTML for the saved notebook."""
        replies, prompt = cast(list[Card], self.replies), str(self._answered()[0]["prompt"])
        return still(self.about["heading"], self.map, self.loci, replies, prompt)

    def _do(self, do: str, **what: Any) -> None:
        if do == "begin":
            if not self.replies and not self._chosen and not self.status["busy"]:
                self._start(self._begin)
        elif do == "stop":
            self.stop()
        elif do == "map":
            if what["pair"] == OWN or what["estimator"] not in self._maps:
                self._start(functools.partial(self._attribute, what))
            else:
                self._draw_map(what)
        elif do == "toggle":
            self._set(what.get("settings", {}))
            self._toggle(Locus(what["hook_point"], tuple(what["positions"]), what["head"]), what.get("extend", False))
        elif do == "remove":
            self._chosen.remove(self._named(what["name"]))
            self._reselected()
        elif do == "other":
            self._other(self._named(what["name"]), what["trait"])
        elif do == "generate":
            self._set(what)
            self._start(self._write)
        elif do == "adjust":
            self._adjust(what)
        elif do == "ladder":
            self._set(what.get("settings", {}))
            self._start(functools.partial(self._write, self._named(what["name"])))
        elif do == "keep":
            self._keep(self._named(what["name"]))
        elif do == "continue":
            self._continue(what["key"])
        elif do == "undo":
            self.talk, self.replies = self.talk[:-2], []  # which answer what is taken back
        elif do == "pattern":
            self._start(functools.partial(self._attend, what["layer"], what["head"]))
        elif do == "snapshot":
            files = self.snapshot()
            self.kept = {"path": ", ".join(map(str, files)), "code": ""}

    def _named(self, name: str) -> Chosen:
        found = next((c for c in self._chosen if c.name == name), None)
        if found is None:
            raise StarError(f"{shown(name)} is not selected any more: click it again.")
        return found

    def _set(self, what: JsonObject) -> None:
        """Take over what is to be written; on an error all stays as the replies that are shown have it."""
        wanted = self.settings | what
        if wanted["prompt"] != self.settings["prompt"]:
            wanted["note"] = ""
        chat = self._chat(wanted)
        for chosen in self._chosen:
            self._resolved(chosen.positions, chat)
        render_prompts(self._model, [chat], sampling_of(wanted).max_new_tokens)  # raises where it is too long
        self.settings = wanted

    def _answered(self) -> tuple[JsonObject, list[dict[str, str]]]:
        """Settings and chat that the replies which are shown were written under; the settings may have changed since,
        where what they asked for was stopped.
        """
        if self.replies and self._under is not None:
            return self._under
        return self.settings, self._chat(self.settings)

    def _adjust(self, what: JsonObject) -> None:
        """Another strength or other positions of a locus."""
        self._set(what.get("settings", {}))
        chosen = self._named(what["name"])
        self._resolved(what.get("at", chosen.positions), self._chat(self.settings))
        strength = what.get("strength", chosen.strength)
        if chosen.vector is not None:
            chosen.vector.scaled(strength)
        if what.get("at", chosen.positions) != chosen.positions:
            chosen.positions, chosen.most, strength = what["at"], None, None  # another place has another range
        chosen.strength = strength
        if strength is not None and chosen.most is not None:
            chosen.most = max(chosen.most, float(f"{abs(strength):.2g}"))
        self._show_loci()
        self._start(self._write)

    def _toggle(self, locus: Locus, extend: bool) -> None:
        """Select or remove; with ``extend`` a token more or less for the locus at the same hook point."""
        own = [c for c in self._chosen if not c.source]
        alike = [c for c in own if (c.locus.hook_point, c.locus.head) == (locus.hook_point, locus.head)]
        if extend and alike:
            old = alike[-1]
            positions = tuple(sorted(set(old.locus.positions) ^ set(locus.positions)))
            self._chosen.remove(old)
            if positions:
                self._chosen.append(Chosen(replace(locus, positions=positions), old.colour, old.positions))
        elif any(c.locus == locus for c in alike):
            self._chosen = [c for c in self._chosen if c.source or c.locus != locus]
        else:
            row_hooks([(torch.zeros(1, 1), locus, None)])  # raises where no vector can go in
            self._chosen.append(Chosen(locus, self._free_colour()))
        self._reselected()

    def _other(self, beside: Chosen, trait: str) -> None:
        """The vector of another trait at the same place, beside this one's."""
        added = Chosen(beside.locus, self._free_colour(), beside.positions, source=trait)
        if any(c.name == added.name for c in self._chosen):
            raise StarError(f"The vector of {trait} is selected there already.")
        self._chosen.append(added)
        self._reselected()

    def _free_colour(self) -> int:
        free = set(range(len(LOCUS_COLOURS))) - {c.colour for c in self._chosen}
        if not free:
            raise StarError(f"{len(LOCUS_COLOURS)} loci are selected: remove one first.")
        return min(free)

    def _reselected(self) -> None:
        names = {"", *(c.name for c in self._chosen)}
        self.replies = [card for card in self.replies if card["name"] in names]
        self._show_loci()
        self._start(self._write)

    def _begin(self) -> None:
        """The first minute: a prompt whose unsteered reply lacks the trait, and the suggested place beside it."""
        s = self.map["suggested"]
        suggested = Locus(s["hook_point"], tuple(s["positions"]))
        chosen = Chosen(suggested, 0) if self._choice is None else chosen_by_replies(self._choice)
        self._chosen.append(chosen)
        self._show_loci()
        self._known.ready(chosen)
        self._show_loci()
        words = "Looking for a prompt that shows what steering does …"
        asked = self._pairs.heldout.prompts[:FIRST_PROMPTS]
        seed, trait = cast(int, self.settings["seed"]), self._pairs.trait
        first = find_first(self._model, trait, asked, chosen, seed, lambda x: self._say(words, x, busy=True))
        if first.prompts:
            chosen.strength = first.share

        def write(prompt: str, further: int) -> tuple[bool, bool]:
            self.settings = self.settings | {"prompt": prompt, "seed": seed + further, "note": first.describe()}
            self._show_loci()
            self._reply([chosen])
            unsteered, steered = (trait.shown_in(text_of(card)) for card in self.replies)
            return unsteered, steered

        if not settle(first, write):
            self._reply([chosen])
        self._measure([chosen])

    def _attribute(self, what: JsonObject) -> None:
        method = what["estimator"]
        own = what["pair"] == OWN
        name = CHOOSER.get(method, method)
        self._say(f"Attributing{' this prompt' if own else ''} with {name} …", busy=True)
        replies = cast(list[Card], self.replies)
        pairs = own_pair(self._pairs.trait, self._answered()[1], replies) if own else self._pairs
        found = attribute(self._model, pairs, method=method, progress=False)
        if own:
            self.settings = self.settings | what | {"form": "classical"}
            shown = view(found, "classical", 0, what["component"])
            self.map = shown | {"suggested": self.map["suggested"]}
        else:
            self._maps[method] = found
            self._draw_map(what)

    def _draw_map(self, what: JsonObject) -> None:
        """The settings say which map is shown, so they change with it."""
        s: JsonObject = self.settings | what
        self.settings = s
        attr = self._maps[s["estimator"]]
        shown = view(attr, s["form"], None if s["pair"] < 0 else s["pair"], s["component"])
        if attr.method not in self._suggested:
            self._suggested[attr.method] = suggestion(attr, self._place)
        self.map = shown | {"suggested": self._suggested[attr.method]}

    def _write(self, ladder: Chosen | None = None) -> None:
        """The replies, then the dose–response of new loci."""
        chosen = [ladder] if ladder is not None else list(self._chosen)
        self._reply(chosen, ladder is not None)
        self._measure(chosen)

    def _measure(self, chosen: Sequence[Chosen]) -> None:
        """The dose–response of what was not measured yet."""
        for one in (None, *chosen):
            if self._known.measure(one):
                self._show_loci()

    def _reply(self, chosen: Sequence[Chosen], ladder: bool = False) -> None:
        """Stream the replies side by side, then measure them."""
        s: JsonObject = self.settings
        for one in chosen:
            if self._known.ready(one):
                self._show_loci()
        chat, trait = self._chat(s), self._pairs.trait
        places = [(one, self._resolved(one.positions, chat)) for one in chosen]
        ways = ladder_of(*places[0]) if ladder else ways_of(places, s["together"])
        runs: list[list[Run]] = [[] for _ in ways]
        written: list[tuple[int, list[Reply]]] = []
        for seed in range(s["seed"], s["seed"] + s["count"]):
            shown, replies = 0.0, []
            streamed = stream(self._model, [chat] * len(ways), hooks_of(ways), seed=seed, sampling=sampling_of(s))
            try:
                for step, replies in enumerate(streamed, 1):
                    if time.monotonic() - shown > FRAME:
                        self._under = s, chat
                        self.replies = cards(ways, runs, [run_of(trait, r, seed, writing=True) for r in replies])
                        self._say("Writing …", step / s["length"], busy=True)
                        shown = time.monotonic()
            finally:  # stopped or not
                if replies:
                    self._under = s, chat
                    self.replies = cards(ways, runs, [run_of(trait, r, seed) for r in replies])
            written.append((seed, replies))
            for row, reply in zip(runs, replies, strict=True):
                row.append(run_of(trait, reply, seed))
        end = len(render(tokenizer_of(self._model), chat).ids)
        for k, (seed, replies) in enumerate(written):
            for row, way, reply in zip(runs, ways, replies, strict=True):
                row[k] = run_of(trait, reply, seed, measured(self._model, chat, reply, hooks_of([way], end)))
            self.replies = cards(ways, runs)

    def _chat(self, s: JsonObject) -> list[dict[str, str]]:
        system = [{"role": "system", "content": s["system"]}] if s["system"].strip() else []
        as_messages(s["prompt"])  # raises where it is empty
        return [*system, *self.talk, {"role": "user", "content": s["prompt"]}]

    def _resolved(self, typed: str, chat: Sequence[Message]) -> str | tuple[int, ...]:
        """Where a locus is added in this chat. Raises StarError where there is no such place."""
        positions = resolve_span(tokenizer_of(self._model), chat, read_positions(typed))
        if positions != "locus":
            schedule(positions)  # raises where there is none
        return positions

    def _continue(self, key: str) -> None:
        """The card's reply becomes part of the chat, for the next turn."""
        card = next((card for card in cast(list[Card], self.replies) if card["key"] == key), None)
        if card is None:
            raise StarError("This reply is not shown any more: answer one that is.")
        said = text_of(card)
        if self.status["busy"] and any(run["writing"] for run in card["runs"]):
            raise StarError("This reply is still being written: answer it when it is whole, or stop it there.")
        if not said:
            raise StarError("This reply is empty: it cannot be answered.")
        _, asked = self._answered()
        turns = [m for m in asked if m["role"] != "system"]
        self.talk = [*turns, {"role": "assistant", "content": said}]
        self.replies = []

    def _show_loci(self) -> None:
        self.loci = [chosen.shown(self._known.curve(chosen)) for chosen in self._chosen]
        self._show_doses()

    def _show_doses(self) -> None:
        self.doses = [
            {"name": c.name, "fraction": c.vector.fraction, **{k: c.shown(table)[k] for k in ("best", "safe")}}
            | {"rows": table.to_dict(orient="records")}
            for c in self._chosen
            if c.vector is not None and (table := self._known.curve(c)) is not None
        ]

    def _attend(self, layer: int, head: int) -> None:
        """What a head looks at in the chat."""
        self._say(f"Reading layer {layer}, head {head} …", busy=True)
        self.pattern = attention_of(self._model, self._chat(self.settings), layer, head)

    def _keep(self, chosen: Chosen) -> None:
        """Save the vector, and say in Python what the widget did with it."""
        if chosen.vector is None:
            raise StarError("The vector is being extracted: keep it once replies appear.")
        path = free_path(chosen.file, chosen.vector)
        chosen.vector.save(path)
        code = [f'vector = star.SteeringVector.load("{path}", model)', *self._in_code([chosen])]
        self.kept = {"path": str(path), "code": "\n".join(code)}

    def _in_code(self, places: Sequence[Chosen]) -> list[str]:
        """Python that writes the reply under the vector of a place, or of all of several."""
        settings, chat = self._answered()
        return reply_in_code([(c, self._resolved(c.positions, chat)) for c in places], chat, settings)
