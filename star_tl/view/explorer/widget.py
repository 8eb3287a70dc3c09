"""The Jupyter widget: see where a trait is carried, click a place, hear the model change.

The page (``widget.js``) shows what the widget's traits hold and sends back what was clicked; the widget is
the truth. Work runs in a thread that gives way: a second click, Stop, or a cell that runs ends it at
its next tensor operation, because hooks belong to the model and all of these use the same one.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from star_tl.attribution import ESTIMATORS, AttributionMap, attribute
from star_tl.data.chat import Message, as_messages, render, resolve_span
from star_tl.data.pairs import ContrastivePair, Pairs, load_pairs
from star_tl.errors import StarError, check_kind
from star_tl.evaluation.drift import drift_reach
from star_tl.evaluation.scores import score
from star_tl.evaluation.strength import DRIFT_LIMIT
from star_tl.files import JsonObject
from star_tl.generation.sampling import Reply, generate, stream
from star_tl.generation.settings import Sampling
from star_tl.locus import Locus
from star_tl.models.backend import MODELS, Model, attached, residual_stream, tokenizer_of
from star_tl.models.batch import make_batch
from star_tl.steering.condition import Condition, batch_hooks
from star_tl.steering.hooks import row_hooks
from star_tl.steering.positions import read_positions, schedule
from star_tl.vectors import SteeringVector, extract_vector
from star_tl.vectors.survey import Survey, survey
from star_tl.view.explorer.doses import DOSES, FURTHER, PROBE, Chosen, as_dict, curve, natural
from star_tl.view.explorer.maps import view
from star_tl.view.explorer.replies import Piece, measured, segments
from star_tl.view.explorer.snapshot import Card, Run, write_snapshot
from star_tl.view.explorer.turns import OPEN, TURN, Stoppable, Stopped, give_way_to_cells
from star_tl.view.explorer.ways import Way, free_path, hooks_of, place_words, positions_in_code
from star_tl.view.plots import DIVERGING, DIVERGING_DARK, GREY, LOCUS_COLOURS, ORANGE

try:
    import anywidget
    import traitlets
except ModuleNotFoundError:
    raise StarError("The explorer needs Jupyter's widgets: pip install 'star_tl[notebook]'.") from None

FORMS = ("classical", "steering")
# What the page offers, where any schedule may be typed, with its words.
POSITIONS = {
    "locus": "where the vector was extracted",
    "last_prompt": "the prompt's last token",
    "prompt": "the whole prompt",
    "user turn": "what the user wrote",
    "header": "the assistant's header, before the reply",
    "generated": "last prompt token and reply",
    "first 8": "the reply's first 8 tokens",
    "every 4": "every 4th token of the reply",
    "decay 16": "the reply, halving every 16 tokens",
    "all": "prompt and reply",
    "-3, -2, -1": "numbers: −1 is the prompt's last token, 0 the reply's first",
}
DOSE_PROMPTS = 12
LADDER = (-1.0, -0.5, 0.5, 1.0, 1.5)  # × the strength of the locus
MOST_SEEDS = 4
EXTENSIONS = 3  # of a dose–response that does not pass the drift limit
OWN = -2  # the "pair" that is the user's own prompt
SAMPLING = Sampling()
FRAME = 0.08  # seconds between two updates of a streamed reply
CHOOSER = {key: e.label for key, e in ESTIMATORS.items() if key != "exact"}  # which takes minutes a pair


def explore(model: Model, pairs: Pairs | str | Path, attr: AttributionMap | None = None) -> Explorer:
    """The widget, for JupyterLab, Notebook 7 and VS Code.

        star.explore(model, "emotional_support")

    Args:
        model: from :func:`star_tl.load_model`.
        pairs: from :func:`star_tl.load_pairs`, or what that takes; their extraction split gives maps, vectors and
            dose–response.
        attr: an attribution map of these pairs, where you have one; default: attribute now.
    """
    check_kind(model, MODELS, "a model that load_model returns")
    if not isinstance(pairs, Pairs):
        pairs = load_pairs(pairs)
    if attr is not None:
        check_kind(attr, AttributionMap, "a map that attribute returns")
        attr.check(model)
    return Explorer(model, pairs, attr if attr is not None else attribute(model, pairs))


class Explorer(anywidget.AnyWidget):
    """What :func:`explore` shows; ``vectors`` are those of the selected loci."""

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    about = traitlets.Dict().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    map = traitlets.Dict().tag(sync=True)
    loci = traitlets.List().tag(sync=True)
    replies = traitlets.List().tag(sync=True)
    doses = traitlets.List().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    kept = traitlets.Dict().tag(sync=True)
    talk = traitlets.List().tag(sync=True)
    pattern = traitlets.Dict().tag(sync=True)

    def __init__(self, model: Model, pairs: Pairs, attr: AttributionMap) -> None:
        super().__init__()
        self._model, self._pairs = model, pairs
        self._maps: dict[str, AttributionMap] = {attr.method: attr}
        self._suggested: dict[str, JsonObject] = {}
        self._chosen: list[Chosen] = []
        self._survey: Survey | None = None
        self._window = attr.window
        self._measured: dict[tuple[Locus, str] | None, pd.DataFrame] = {}
        self._stop = threading.Event()
        # One place for every click: another estimator suggests other layers, not near-duplicates of what is selected.
        self._place = attr.top_locus().positions if attr.prices_layers else (-1,)
        practice = pairs.extraction.prompts
        self._practice = practice[:: max(1, len(practice) // DOSE_PROMPTS)][:DOSE_PROMPTS]
        self.about = {
            "title": pairs.trait.name.replace("_", " "),
            "model": str(model.cfg.model_name),
            "estimators": {m: CHOOSER.get(m, m) for m in (*CHOOSER, attr.method)},
            "forms": FORMS,
            "positions": POSITIONS,
            "pairs": [p.id for p in pairs.extraction],
            "colours": {"unsteered": GREY, "loci": LOCUS_COLOURS, "drift": ORANGE},
            "scales": {"light": [c for _, c in DIVERGING], "dark": [c for _, c in DIVERGING_DARK]},
            "limit": DRIFT_LIMIT,
            "prompts": len(self._practice),
            "seeds": MOST_SEEDS,
            "place": list(self._place),
        }
        shown = view(attr, "classical", None, None)
        settings: JsonObject = {
            "estimator": attr.method,
            "form": "classical",
            "pair": -1,
            "component": shown["component"],
            "prompt": pairs.heldout.prompts[0][-1]["content"],
            "system": "",
            "seed": 0,
            "count": 1,
            "temperature": SAMPLING.temperature,
            "length": SAMPLING.max_new_tokens,
            "together": False,
        }
        self.settings = settings
        self._said, self._refused = 0, ""
        self._say("")
        self._draw_map({})
        self.on_msg(self._hear)
        OPEN.add(self)
        give_way_to_cells()

    @property
    def vectors(self) -> list[SteeringVector]:
        """The steering vectors of the selected loci."""
        return [self._vector(chosen.locus) for chosen in self._chosen]

    def stop(self) -> None:
        """End what goes on."""
        self._stop.set()

    def close(self) -> None:
        """Remove the widget; what goes on ends."""
        self.stop()
        super().close()

    def snapshot(self, path: str | Path | None = None) -> list[Path]:
        """Write what is shown as one HTML file that needs no network, and its replies as CSV beside it.

        Args:
            path: the HTML file; default the trait's name, with a number where that is taken.

        Raises:
            StarError: nothing was written yet, or the file cannot be written.
        """
        if not self.replies:
            raise StarError("There is nothing to save yet: write replies first.")
        name = f"{self._pairs.trait.name}_snapshot"
        free = (Path(f"{name}{f'-{k}' if k else ''}.html") for k in range(10_000))
        chosen = Path(path) if path is not None else next(p for p in free if not p.exists())
        curves = {str(c.locus): table for c in self._chosen if (table := self._curve(c)) is not None}
        code = "\n".join(
            [
                "import star_tl as star",
                f"model = star.load_model({self._model.cfg.model_name!r})",
                f"pairs = star.load_pairs({self._pairs.trait.name!r})",
                *(line for c in self._chosen if c.vector for line in self._in_code(c)),
            ]
        )
        title = f"{self.about['title'].capitalize()} in {self.about['model']}"
        attr = self._maps[self.settings["estimator"]]
        return write_snapshot(
            chosen, title, attr, self._chat(self.settings), cast(list[Card], self.replies), curves, code
        )

    def __repr__(self) -> str:
        loci = "; ".join(str(c.locus) for c in self._chosen) or "no locus selected"
        return f"Explorer({self._pairs.trait.name} in {self._model.cfg.model_name}: {loci})"

    def _hear(self, _: object, message: JsonObject, buffers: object) -> None:
        """What the page asks for."""
        self._refused = ""
        try:
            self._do(**message)
        except StarError as error:
            self._refused, going = str(error), self.status["busy"]
            self._say(self.status["text"] if going else "", self.status["progress"], going)

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
            self.talk = self.talk[:-2]
        elif do == "pattern":
            self._start(functools.partial(self._attend, what["layer"], what["head"]))
        elif do == "snapshot":
            files = self.snapshot()
            self.kept = {"path": ", ".join(map(str, files)), "code": ""}

    def _named(self, name: str) -> Chosen:
        return next(c for c in self._chosen if str(c.locus) == name)

    def _set(self, what: JsonObject) -> None:
        """Take over what is to be written; on an error all stays as the replies that are shown have it."""
        wanted = self.settings | what
        chat = self._chat(wanted)
        for chosen in self._chosen:
            self._resolved(chosen.positions, chat)
        _sampling(wanted)
        self.settings = wanted

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
        alike = [c for c in self._chosen if (c.locus.hook_point, c.locus.head) == (locus.hook_point, locus.head)]
        if extend and alike:
            old = alike[-1]
            positions = tuple(sorted(set(old.locus.positions) ^ set(locus.positions)))
            self._chosen.remove(old)
            if positions:
                self._chosen.append(Chosen(replace(locus, positions=positions), old.colour, old.positions))
        elif any(c.locus == locus for c in alike):
            self._chosen = [c for c in self._chosen if c.locus != locus]
        elif len(self._chosen) == len(LOCUS_COLOURS):
            raise StarError(f"{len(LOCUS_COLOURS)} loci are selected: remove one first.")
        else:
            row_hooks([(torch.zeros(1, 1), locus, None)])  # raises where no vector can go in
            free = set(range(len(LOCUS_COLOURS))) - {c.colour for c in self._chosen}
            self._chosen.append(Chosen(locus, min(free)))
        names = {"", *(str(c.locus) for c in self._chosen)}
        self.replies = [card for card in self.replies if card["name"] in names]
        self._show_loci()
        self._start(self._write)

    # The work, in a thread.

    def _start(self, work: Callable[[], None]) -> None:
        """Begin ``work``; what went on before ends at its next tensor operation."""
        self.stop()
        self._stop = stop = threading.Event()
        self._say("Waiting for the model …", busy=True)
        threading.Thread(target=self._run, args=(work, stop), daemon=True).start()

    def _run(self, work: Callable[[], None], stop: threading.Event) -> None:
        error = ""
        with TURN:
            try:
                with Stoppable(stop):
                    if not stop.is_set():
                        work()
            except Stopped:
                pass
            except StarError as refused:
                error = str(refused)
            except Exception as broken:  # else the thread would end unheard
                error = f"{type(broken).__name__}: {broken}"
            if stop is self._stop:
                self._say("Stopped." if stop.is_set() else "Done.", error=error)

    def _say(self, text: str, progress: float | None = None, busy: bool = False, error: str = "") -> None:
        self._said += 1  # so that the page hears the same words twice
        error = error or self._refused  # which stands until something else is asked for, whatever goes on
        self.status = {"busy": busy, "text": text, "progress": progress, "error": error, "said": self._said}

    def _begin(self) -> None:
        """The first minute: a prompt whose unsteered reply lacks the trait, and the suggested place beside it."""
        self._read_pairs()
        asked = self._pairs.heldout.prompts[:DOSE_PROMPTS]
        self._say("Looking for a prompt whose unsteered reply lacks the trait …", busy=True)
        replies = generate(
            self._model, asked, seed=cast("int", self.settings["seed"]), sampling=SAMPLING, progress=False
        )
        lacking = [p for p, r in zip(asked, replies, strict=True) if r.text and not self._pairs.trait.shown_in(r.text)]
        single = [p for p in lacking if len(p) == 1]
        if single:
            self.settings = self.settings | {"prompt": single[0][0]["content"]}
        s = self.map["suggested"]
        self._chosen.append(Chosen(Locus(s["hook_point"], tuple(s["positions"])), 0))
        self._show_loci()
        self._write()

    def _read_pairs(self) -> None:
        if self._survey is None:
            self._say("Reading the pairs, once for all places …", 0.0, busy=True)
            self._survey = survey(
                self._model,
                self._pairs,
                self._window,
                progress=lambda share: self._say("Reading the pairs, once for all places …", share, busy=True),
            )

    def _attribute(self, what: JsonObject) -> None:
        method = what["estimator"]
        own = what["pair"] == OWN
        name = CHOOSER.get(method, method)
        self._say(f"Attributing{' this prompt' if own else ''} with {name} …", busy=True)
        pairs = self._own_pair() if own else self._pairs
        found = attribute(self._model, pairs, method=method, progress=False)
        if own:
            self.settings = self.settings | what | {"form": "classical"}
            shown = view(found, "classical", 0, what["component"])
            self.map = shown | {"suggested": self.map["suggested"]}
        else:
            self._maps[method] = found
            self._draw_map(what)

    def _own_pair(self) -> Pairs:
        """The prompt with its steered and its unsteered reply: what makes the one rather than the other."""
        texts = ["".join(part["text"] for part in card["runs"][0]["segments"]) for card in self.replies[:2]]
        if len(texts) < 2 or len(set(texts)) < 2:
            raise StarError("A map of this prompt needs a steered reply that differs: select a place first.")
        pair = ContrastivePair("this prompt", as_messages(self._chat(self.settings)), texts[1], texts[0])
        return Pairs(self._pairs.trait, (pair,))

    def _draw_map(self, what: JsonObject) -> None:
        """The settings say which map is shown, so they change with it."""
        s: JsonObject = self.settings | what
        self.settings = s
        attr = self._maps[s["estimator"]]
        shown = view(attr, s["form"], None if s["pair"] < 0 else s["pair"], s["component"])
        if attr.method not in self._suggested:
            if attr.prices_layers:
                choice = attr.choose_layer()
                said, chosen, layer = choice.describe(), choice.singled_out, choice.layer
            else:
                said, chosen, layer = "this map prices no layers", False, attr.n_layers // 2
            self._suggested[attr.method] = as_dict(Locus(f"blocks.{layer}.hook_resid_post", self._place))
            self._suggested[attr.method] |= {"said": said, "chosen": chosen, "priced": attr.prices_layers}
        self.map = shown | {"suggested": self._suggested[attr.method]}

    def _vector(self, locus: Locus) -> SteeringVector:
        if self._survey is not None and self._survey.holds(locus):
            return self._survey.vector(locus)
        return extract_vector(self._model, self._pairs, locus)

    def _ready(self, chosen: Chosen) -> None:
        """Its vector and range."""
        if chosen.vector is None:
            self._read_pairs()
            chosen.vector = self._vector(chosen.locus)
        if chosen.most is None:
            self._say("Looking how far this place may be turned up …", busy=True)
            positions = read_positions(chosen.positions)
            chosen.take(chosen.vector, drift_reach(self._model, chosen.vector, self._pairs, positions, PROBE, 2))
            self._show_loci()

    def _known(self, chosen: Chosen) -> SteeringVector:
        """Its vector, which is there once it is ready."""
        if chosen.vector is None:
            chosen.vector = self._vector(chosen.locus)
        return chosen.vector

    def _ways(self, ladder: Chosen | None, chat: Sequence[Message]) -> list[Way]:
        ways = [Way("", "", "Unsteered")]
        if ladder is not None:
            at = self._resolved(ladder.positions, chat)
            for factor in LADDER:
                share = factor * (ladder.strength or 0.0)
                vector = self._known(ladder)
                part = (vector, natural(vector, share), at)
                ways.append(
                    Way(
                        f"{ladder.locus} × {factor:g}",
                        str(ladder.locus),
                        f"Strength {share:+.2f}".replace("-", "−"),
                        None,
                        (part,),
                    )
                )
            return ways
        parts = [(c, (self._known(c), c.natural, self._resolved(c.positions, chat))) for c in self._chosen]
        ways += [Way(str(c.locus), str(c.locus), "", c.strength, (part,)) for c, part in parts]
        if self.settings["together"] and len(parts) > 1:
            ways.append(Way("together", "", "All places together", None, tuple(part for _, part in parts)))
        return ways

    def _write(self, ladder: Chosen | None = None) -> None:
        """Stream the replies side by side, then measure them, then the dose–response of new loci."""
        s: JsonObject = self.settings
        chosen = [ladder] if ladder is not None else list(self._chosen)
        for one in chosen:
            self._ready(one)
        chat = self._chat(s)
        ways = self._ways(ladder, chat)
        runs: list[list[Run]] = [[] for _ in ways]
        written: list[tuple[int, list[Reply]]] = []
        for seed in range(s["seed"], s["seed"] + s["count"]):
            shown, replies = 0.0, []
            streamed = stream(self._model, [chat] * len(ways), hooks_of(ways), seed=seed, sampling=_sampling(s))
            try:
                for step, replies in enumerate(streamed, 1):
                    if time.monotonic() - shown > FRAME:
                        self._show_replies(ways, runs, [self._run_of(r, seed, writing=True) for r in replies])
                        self._say("Writing …", step / s["length"], busy=True)
                        shown = time.monotonic()
            finally:  # stopped or not
                if replies:
                    self._show_replies(ways, runs, [self._run_of(r, seed) for r in replies])
            written.append((seed, replies))
            for row, reply in zip(runs, replies, strict=True):
                row.append(self._run_of(reply, seed))
        end = len(render(tokenizer_of(self._model), chat).ids)
        for k, (seed, replies) in enumerate(written):
            for row, way, reply in zip(runs, ways, replies, strict=True):
                found = measured(self._model, chat, reply, hooks_of([way], end))
                row[k] = self._run_of(reply, seed, found)
            self._show_replies(ways, runs)
        for one in (None, *chosen):
            self._measure(one)
        self._show_doses()

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
        card = next(card for card in self.replies if card["key"] == key)
        said = "".join(part["text"] for part in card["runs"][0]["segments"])
        if not said:
            raise StarError("This reply is empty: it cannot be answered.")
        turns = [{"role": "user", "content": self.settings["prompt"]}, {"role": "assistant", "content": said}]
        self.talk = [*self.talk, *turns]
        self.replies = []

    def _run_of(
        self, reply: Reply, seed: int, found: tuple[list[Piece], float, float] | None = None, writing: bool = False
    ) -> Run:
        pieces, drift, logprob = found if found is not None else ([(reply.text, None, "")], None, None)
        going = writing and not reply.stopped
        parts, markers = segments(self._pairs.trait, pieces), len(self._pairs.trait.find(reply.text))
        known = {"drift": drift, "logprob": logprob} if found is not None else {}
        return cast(Run, {"seed": seed, "segments": parts, "markers": markers, "writing": going, **known})

    def _show_replies(self, ways: Sequence[Way], runs: Sequence[Sequence[Run]], now: Sequence[Run] = ()) -> None:
        self.replies = [
            {
                "key": way.key,
                "name": way.name,
                "title": way.title or place_words(way.name),
                "strength": way.strength,
                "runs": [*before, *now[i : i + 1]],
            }
            for i, (way, before) in enumerate(zip(ways, runs, strict=True))
        ]

    def _measure(self, chosen: Chosen | None) -> None:
        """Score replies to the practice prompts at every dose; at none for the unsteered model."""
        key = (chosen.locus, chosen.positions) if chosen is not None else None
        if key in self._measured:
            return
        if chosen is None:
            self._measured[None] = self._scored(None, [0.0])
            return
        most = chosen.most or 1.0
        found = self._scored(chosen, [dose * most for dose in DOSES])
        for _ in range(EXTENSIONS):
            if found.groupby("strength").drift.mean().max() > DRIFT_LIMIT:
                break
            more = self._scored(chosen, [x * most for x in FURTHER])
            found, most = pd.concat([found, more], ignore_index=True), FURTHER[-1] * most
        chosen.most = float(f"{most:.3g}")
        self._measured[key] = found
        self._show_doses()
        self._show_loci()

    def _scored(self, chosen: Chosen | None, shares: Sequence[float]) -> pd.DataFrame:
        vector, positions = (chosen.vector, read_positions(chosen.positions)) if chosen is not None else (None, "")
        ways = [
            Condition("steered", vector, natural(vector, share), positions) if vector is not None else Condition()
            for share in shares
        ]
        prompts = [p for _ in ways for p in self._practice]
        rows = [way.rows(tokenizer_of(self._model), p) for way in ways for p in self._practice]
        what = f"layer {chosen.locus.layer}" if chosen is not None else "the unsteered model"
        replies: list[Reply] = []
        for step, replies in enumerate(stream(self._model, prompts, batch_hooks(rows), sampling=SAMPLING), 1):  # noqa: B007
            self._say(f"Dose–response of {what} …", step / SAMPLING.max_new_tokens, busy=True)
        frames, n = [], len(self._practice)
        for i, (share, way) in enumerate(zip(shares, ways, strict=True)):
            self._say(f"Scoring {what} …", i / len(ways), busy=True)
            frame = score(self._model, self._pairs.trait, self._practice, replies[i * n : (i + 1) * n], way)
            frames.append(frame.assign(strength=share, arm=way.name, prompt_id=range(n)))
        return pd.concat(frames, ignore_index=True)

    def _curve(self, chosen: Chosen) -> pd.DataFrame | None:
        base, found = self._measured.get(None), self._measured.get((chosen.locus, chosen.positions))
        return curve(base, found) if base is not None and found is not None else None

    def _show_loci(self) -> None:
        self.loci = [chosen.shown(self._curve(chosen)) for chosen in self._chosen]
        self._show_doses()

    def _show_doses(self) -> None:
        self.doses = [
            {"name": str(c.locus), "fraction": c.vector.fraction, **{k: c.shown(table)[k] for k in ("best", "safe")}}
            | {"rows": table.to_dict(orient="records")}
            for c in self._chosen
            if c.vector is not None and (table := self._curve(c)) is not None
        ]

    def _attend(self, layer: int, head: int) -> None:
        """What a head looks at in the chat: its attention pattern, query × key."""
        self._say(f"Reading layer {layer}, head {head} …", busy=True)
        ids = render(tokenizer_of(self._model), self._chat(self.settings)).ids
        batch, found = make_batch(self._model, [ids]), []

        def keep(pattern: torch.Tensor, hook: object) -> None:
            found.append(pattern[0, head].float().cpu())

        with torch.no_grad(), attached(self._model, [(f"blocks.{layer}.attn.hook_pattern", keep)]):
            residual_stream(self._model, batch.tokens, batch.mask, layers=layer + 1)
        tokenizer = tokenizer_of(self._model)
        tokens = [tokenizer.decode([i]) for i in ids]
        weights = [[round(w, 3) for w in row] for row in found[0].tolist()]
        self.pattern = {"layer": layer, "head": head, "tokens": tokens, "weights": weights}

    def _keep(self, chosen: Chosen) -> None:
        """Save the vector, and say in Python what the widget did with it."""
        if chosen.vector is None:
            raise StarError("The vector is being extracted: keep it once replies appear.")
        locus = chosen.locus
        place = locus.hook_point.replace("blocks.", "layer").replace(".", "_").replace("hook_", "")
        head = f"_head{locus.head}" if locus.head is not None else ""
        path = free_path(Path(f"{chosen.vector.trait}_{place}{head}.safetensors"), chosen.vector)
        chosen.vector.save(path)
        code = [f'vector = star.SteeringVector.load("{path}", model)', *self._in_code(chosen)[1:]]
        self.kept = {"path": str(path), "code": "\n".join(code)}

    def _in_code(self, chosen: Chosen) -> list[str]:
        """Three lines of Python that write the locus's reply."""
        s, locus = self.settings, chosen.locus
        chat = self._chat(s)
        prompt = s["prompt"] if len(chat) == 1 else chat
        at, comment = positions_in_code(self._resolved(chosen.positions, chat), chosen.positions)
        other = [
            f"{name}={value!r}"
            for name, value, usual in (
                ("temperature", s["temperature"], SAMPLING.temperature),
                ("max_new_tokens", s["length"], SAMPLING.max_new_tokens),
            )
            if value != usual
        ]
        return [
            f"vector = star.extract_vector(model, pairs, star.{locus!r})",
            f"hooks = vector.hooks(strength={chosen.natural}, positions={at}){comment}",
            f"star.sample(model, [{prompt!r}], hooks, {', '.join(['seed=' + str(s['seed']), *other])})",
        ]


def _sampling(s: JsonObject) -> Sampling:
    if not 1 <= s["count"] <= MOST_SEEDS:
        raise StarError(f"Replies a card is {s['count']}: use 1 to {MOST_SEEDS}.")
    return replace(SAMPLING, temperature=s["temperature"], max_new_tokens=s["length"])
