"""The Jupyter widget: see where a trait is carried, click a place, hear the model change.

The page (``widget.js``) shows what the widget's traits hold and sends back what was clicked; the widget is
the truth. Work runs in a thread that gives way: a second click, Stop, or a cell that runs ends it at
its next tensor operation, because hooks belong to the model and all of these use the same one.
"""

from __future__ import annotations

import functools
import itertools
import json
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from star_tl.attribution import ESTIMATORS, AttributionMap, attribute
from star_tl.data.chat import SPANS, Span, as_messages, render, resolve_span
from star_tl.data.pairs import Pairs, Trait
from star_tl.errors import StarError
from star_tl.evaluation.scores import mark_coherent, score
from star_tl.evaluation.strength import DRIFT_LIMIT, best_dose, dose_table
from star_tl.generation.likelihood import kl_per_token, reply_logits, reply_logprobs
from star_tl.generation.sampling import Reply, stream
from star_tl.generation.settings import Sampling
from star_tl.locus import COMPONENTS, WRITES, Locus
from star_tl.models.backend import Model
from star_tl.models.batch import make_batch
from star_tl.stats import mean_interval
from star_tl.steering.condition import Condition
from star_tl.steering.hooks import row_hooks
from star_tl.steering.positions import read_positions, schedule
from star_tl.vectors import SteeringVector, extract_vector
from star_tl.view.plots import DIVERGING, DIVERGING_DARK, GREY, LOCUS_COLOURS, ORANGE, shared_spans

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
DOSES = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # shares of the slider's end
DOSE_PROMPTS = 12
SAMPLING = Sampling()
FRAME = 0.08  # seconds between two updates of a streamed reply
CHOOSER = {key: e.label for key, e in ESTIMATORS.items() if key != "exact"}  # which takes minutes a pair


def explore(model: Model, pairs: Pairs, attr: AttributionMap | None = None) -> Explorer:
    """The widget, for JupyterLab, Notebook 7 and VS Code.

    Args:
        model: from :func:`star_tl.load_model`.
        pairs: from :func:`star_tl.load_pairs`; their extraction split gives maps, vectors and dose–response.
        attr: an attribution map of these pairs, where you have one; default: attribute now.
    """
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

    def __init__(self, model: Model, pairs: Pairs, attr: AttributionMap) -> None:
        super().__init__()
        self._model, self._pairs = model, pairs
        self._maps = {attr.method: attr}
        self._suggested: dict[str, dict[str, Any]] = {}
        self._chosen: list[Locus] = []
        self._vectors: dict[Locus, SteeringVector] = {}
        self._measured: dict[tuple[Locus | None, str | tuple[int, ...]], pd.DataFrame] = {}
        self._stop = threading.Event()
        natural = self._vector(attr.top_locus()).fraction
        most = float(f"{4 * natural:.1g}")
        practice = pairs.extraction.prompts
        self._practice = practice[:: max(1, len(practice) // DOSE_PROMPTS)][:DOSE_PROMPTS]
        self.about = {
            "title": pairs.trait.name.replace("_", " "),
            "model": str(model.cfg.model_name),
            "estimators": CHOOSER,
            "forms": FORMS,
            "components": COMPONENTS,
            "positions": POSITIONS,
            "pairs": [p.id for p in pairs.extraction],
            "colours": {"unsteered": GREY, "loci": LOCUS_COLOURS, "drift": ORANGE},
            "scales": {"light": [c for _, c in DIVERGING], "dark": [c for _, c in DIVERGING_DARK]},
            "most": most,
            "limit": DRIFT_LIMIT,
            "prompts": len(self._practice),
        }
        self.settings = {
            "estimator": attr.method,
            "form": "classical",
            "pair": -1,
            "component": "resid_post",
            "prompt": pairs.heldout.prompts[0][-1]["content"],
            "strength": round(2 * natural / (most / 60)) * (most / 60),
            "positions": "locus",
            "seed": 0,
        }
        self._said, self._refused = 0, ""
        self._say("")
        self._draw_map({})
        self.on_msg(self._hear)
        _OPEN.add(self)
        _give_way_to_cells()

    @property
    def vectors(self) -> list[SteeringVector]:
        """The steering vectors of the selected loci."""
        return [self._vector(locus) for locus in self._chosen]

    def stop(self) -> None:
        """End what goes on."""
        self._stop.set()

    def close(self) -> None:
        """Remove the widget; what goes on ends."""
        self.stop()
        super().close()

    def __repr__(self) -> str:
        loci = "; ".join(map(str, self._chosen)) or "no locus selected"
        return f"Explorer({self._pairs.trait.name} in {self._model.cfg.model_name}: {loci})"

    def _hear(self, _: object, message: dict[str, Any], buffers: object) -> None:
        """What the page asks for."""
        self._refused = ""
        try:
            self._do(**message)
        except StarError as error:
            self._refused, going = str(error), self.status["busy"]
            self._say(self.status["text"] if going else "", self.status["progress"], going)

    def _do(self, do: str, **what: Any) -> None:
        if do == "stop":
            self.stop()
        elif do == "map":
            if what["estimator"] in self._maps:
                self._draw_map(what)
            else:
                self._start(functools.partial(self._attribute, what))
        elif do == "toggle":
            self._set(what.get("settings", {}))
            self._toggle(Locus(what["hook_point"], tuple(what["positions"]), what["head"]))
        elif do == "generate":
            self._set(what)
            self._start(self._write)
        elif do == "keep":
            self._keep(self._chosen[what["index"]])

    def _set(self, what: dict[str, Any]) -> None:
        """Take over what is to be written; on an error all stays as the replies that are shown have it."""
        wanted = self.settings | what
        positions = self._positions(wanted)
        if positions != "locus":
            schedule(positions)  # raises where there is none
        self.settings = wanted

    def _toggle(self, locus: Locus) -> None:
        if locus in self._chosen:
            self._chosen.remove(locus)
        elif len(self._chosen) == len(LOCUS_COLOURS):
            raise StarError(f"{len(LOCUS_COLOURS)} loci are selected: remove one first.")
        else:
            row_hooks([(torch.zeros(1, 1), locus, None)])  # raises where no vector can go in
            self._chosen.append(locus)
        taken = {entry["name"]: entry["colour"] for entry in self.loci}
        free = iter(sorted(set(range(len(LOCUS_COLOURS))) - set(taken.values())))
        self.loci = [{**_as_dict(x), "colour": taken[str(x)] if str(x) in taken else next(free)} for x in self._chosen]
        self.replies = [r for r in self.replies if r["name"] in {"", *(str(x) for x in self._chosen)}]
        self._show_doses()
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
        with _TURN:
            try:
                with _Stoppable(stop):
                    if not stop.is_set():
                        work()
            except _Stopped:
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

    def _attribute(self, what: dict[str, Any]) -> None:
        method = what["estimator"]
        self._say(f"Attributing with {CHOOSER[method]} …", busy=True)
        self._maps[method] = attribute(self._model, self._pairs, method=method, progress=False)
        self._draw_map(what)

    def _draw_map(self, what: dict[str, Any]) -> None:
        """The settings say which map is shown, so they change with it."""
        self.settings = s = self.settings | what
        attr = self._maps[s["estimator"]]
        shown = view(attr, s["form"], None if s["pair"] < 0 else s["pair"], s["component"])
        if attr.method not in self._suggested:
            choice = attr.choose_layer()
            said = {"said": choice.describe(), "chosen": choice.singled_out}
            self._suggested[attr.method] = _as_dict(attr.top_locus()) | said
        self.map = shown | {"suggested": self._suggested[attr.method]}

    def _vector(self, locus: Locus) -> SteeringVector:
        if locus not in self._vectors:
            self._vectors[locus] = extract_vector(self._model, self._pairs, locus)
        return self._vectors[locus]

    def _write(self) -> None:
        """Stream the replies side by side, then measure them, then the dose–response of new loci."""
        s, loci = self.settings, list(self._chosen)
        self._say("Extracting the vector …" if loci else "Writing …", busy=True)
        messages = as_messages(s["prompt"])
        at = self._positions(s)
        vectors = [self._vector(locus) for locus in loci]
        ways = [None, *((v.scaled(_natural(v, s["strength"])), v.locus, at) for v in vectors)]
        shown, replies = 0.0, []
        try:
            for step, replies in enumerate(
                stream(self._model, [messages] * len(ways), row_hooks(ways), seed=s["seed"]), 1
            ):
                if time.monotonic() - shown > FRAME:
                    self._show_replies(replies, loci, writing=True)
                    self._say("Writing …", step / SAMPLING.max_new_tokens, busy=True)
                    shown = time.monotonic()
        finally:  # stopped or not
            if replies:
                self._show_replies(replies, loci)
        fluency = _fluency(self._model, messages, replies, vectors, s["strength"], at)
        self._show_replies(replies, loci, fluency)
        for locus in (None, *loci):
            self._measure(locus, read_positions(s["positions"]))
        self._show_doses()

    def _positions(self, settings: dict[str, Any]) -> str | tuple[int, ...]:
        """Where these settings add the vector in their prompt."""
        messages = as_messages(settings["prompt"])
        return resolve_span(self._model.tokenizer, messages, read_positions(settings["positions"]))

    def _show_replies(
        self,
        replies: Sequence[Reply],
        loci: Sequence[Locus],
        fluency: Sequence[tuple[Tensor, float]] | None = None,
        writing: bool = False,
    ) -> None:
        shown = []
        for i, (reply, locus) in enumerate(zip(replies, (None, *loci), strict=False)):
            pieces, measures = [(reply.text, None)], {}
            if fluency is not None:
                kl, logprob = fluency[i]
                pieces = token_pieces(self._model.tokenizer, reply, kl.tolist())
                measures = {"drift": float(kl.mean()), "logprob": logprob}
            parts = segments(self._pairs.trait, pieces)
            found = len(self._pairs.trait.find(reply.text))
            going = writing and not reply.stopped
            shown.append({"name": str(locus or ""), "segments": parts, "markers": found, "writing": going, **measures})
        self.replies = shown

    def _measure(self, locus: Locus | None, positions: str | tuple[int, ...]) -> None:
        """Score replies to the practice prompts at every dose; at none for the unsteered model."""
        key = (locus, positions if locus else "")
        if key in self._measured:
            return
        vector = self._vector(locus) if locus else None
        shares = [dose * self.about["most"] for dose in DOSES] if vector else [0.0]
        strengths = [_natural(vector, share) if vector else 0.0 for share in shares]
        prompts = [p for _ in strengths for p in self._practice]
        at = [resolve_span(self._model.tokenizer, p, positions) for p in self._practice]
        rows = [(vector.scaled(x), vector.locus, where) if vector else None for x in strengths for where in at]
        what = f"layer {locus.layer}" if locus else "the unsteered model"
        replies: list[Reply] = []
        written = stream(self._model, prompts, row_hooks(rows))
        for step, replies in enumerate(written, 1):  # noqa: B007 - the last is wanted
            self._say(f"Dose–response of {what} …", step / SAMPLING.max_new_tokens, busy=True)
        frames, n = [], len(self._practice)
        for i, (share, strength) in enumerate(zip(shares, strengths, strict=True)):
            part = replies[i * n : (i + 1) * n]
            way = Condition("steered", vector, strength, positions) if vector is not None else Condition()
            frame = score(self._model, self._pairs.trait, self._practice, part, way)
            frames.append(frame.assign(strength=share, arm=way.name, prompt_id=range(n)))
        self._measured[key] = pd.concat(frames, ignore_index=True)
        self._show_doses()

    def _show_doses(self) -> None:
        curves, positions = [], read_positions(self.settings["positions"])
        base = self._measured.get((None, ""))
        for locus in self._chosen:
            found = self._measured.get((locus, positions))
            if found is None or base is None:
                continue
            table = dose_table(mark_coherent(pd.concat([base, found], ignore_index=True)))
            curves.append(
                {
                    "name": str(locus),
                    "fraction": self._vector(locus).fraction,
                    "best": best_dose(table),
                    "safe": safe_until(table),
                    "rows": table.to_dict(orient="records"),
                }
            )
        self.doses = curves

    def _keep(self, locus: Locus) -> None:
        """Save the vector, and say in Python what the widget did with it."""
        if locus not in self._vectors:
            raise StarError("The vector is being extracted: keep it once replies appear.")
        vector, s = self._vectors[locus], self.settings
        place = locus.hook_point.replace("blocks.", "layer").replace(".", "_").replace("hook_", "")
        head = f"_head{locus.head}" if locus.head is not None else ""
        path = _free_path(Path(f"{vector.trait}_{place}{head}.safetensors"), vector)
        vector.save(path)
        at, comment = _in_code(self._positions(s), s["positions"])
        self.kept = {
            "path": str(path),
            "code": f'vector = star.SteeringVector.load("{path}", model)\n'
            f"hooks = vector.hooks(strength={_natural(vector, s['strength'])}, positions={at}){comment}\n"
            f"star.sample(model, [{s['prompt']!r}], hooks, seed={s['seed']})",
        }


def view(attr: AttributionMap, form: str, pair: int | None, component: str) -> dict[str, Any]:
    """The three maps of the page: layer × component, layer × head, layer × token.

    Args:
        attr: the scores.
        form: ``"classical"``, or ``"steering"``, which is a mean over pairs by its nature.
        pair: index of a pair, or None for the mean over pairs.
        component: hook point of the token map.
    """
    steering = form == "steering"
    pair = None if steering else pair
    end, window = attr.prompt_end, attr.window
    if steering:
        parts, heads = attr.steering.sum(-1)[None], attr.head_steering.sum(-1)[None]
        tokens = attr.steering[COMPONENTS.index(component)][None]
        first, last = end - window, end
    else:
        rows = slice(None) if pair is None else slice(pair, pair + 1)
        spans = () if pair is None else tuple(s for s in attr.spans[pair] if s.name != "negative reply")
        first, last = (spans[0].start, spans[-1].end) if spans else (end - window, end)
        parts, heads = attr.scores[rows].sum(-1), attr.head_scores[rows].sum(-1)
        tokens = attr.component(component)[rows][..., first:last]
    order = [c for c in COMPONENTS if c not in WRITES] + list(WRITES)
    parts = parts[:, [COMPONENTS.index(c) for c in order]].transpose(1, 2)
    residual = len(order) - len(WRITES)
    token_columns, shown_spans = _token_columns(attr, pair, first, last)
    return {
        "layers": attr.n_layers,
        "mean": pair is None,
        "components": _panel(
            parts,
            [{"label": c, "hook": f"hook_{c}"} for c in order],
            [("residual stream (adds up)", 0, residual), ("writes (this layer's own)", residual, len(order))],
        ),
        "heads": _panel(
            heads,
            [{"label": str(h), "hook": "attn.hook_z", "head": h} for h in range(heads.shape[-1])],
            [("attention head, before W_O", 0, heads.shape[-1])],
        ),
        "tokens": {
            **_panel(tokens, [{**c, "hook": f"hook_{component}"} for c in token_columns], [("", 0, last - first)]),
            "spans": [(s.name, s.start - first, s.end - first) for s in shown_spans],
        },
    }


def _panel(scores: Tensor, columns: list[dict[str, Any]], groups: list[tuple[str, int, int]]) -> dict[str, Any]:
    """Mean over the first axis with 95 % bootstrap intervals; ``groups`` of columns have a colour scale each."""
    z = scores.mean(0)
    low = high = None
    if len(scores) > 1:
        low, high = (end.tolist() for end in mean_interval(scores))
    return {
        "z": z.tolist(),
        "low": low,
        "high": high,
        "columns": columns,
        "groups": [
            {"label": label, "start": a, "end": b, "limit": float(z[:, a:b].abs().max()) or 1.0}
            for label, a, b in groups
        ],
    }


def _token_columns(
    attr: AttributionMap, pair: int | None, first: int, last: int
) -> tuple[list[dict[str, Any]], list[Span]]:
    if pair is None:
        same = [{row[i] for row in attr.tokens} for i in range(first, last)]
        names, spans = [t.pop() if len(t) == 1 else None for t in same], shared_spans(attr, first)
    else:
        names, spans = list(attr.tokens[pair][first:last]), [s for s in attr.spans[pair] if s.end <= last]
    columns = [{"label": name, "position": i - attr.prompt_end} for i, name in enumerate(names, first)]
    return columns, spans


def segments(trait: Trait, pieces: Sequence[tuple[str, float | None]]) -> list[dict[str, Any]]:
    """The text cut where a token or a trait marker begins or ends, each part with its token's drift."""
    text = "".join(piece for piece, _ in pieces)
    marks = trait.find(text)
    cuts, drift_at, at = {0, len(text), *(c for m in marks for c in m)}, {}, 0
    for piece, drift in pieces:
        drift_at |= dict.fromkeys(range(at, at + len(piece)), drift)
        at += len(piece)
        cuts.add(at)
    edges = sorted(cuts)
    return [
        {"text": text[a:b], "marked": any(x <= a < y for x, y in marks), "drift": drift_at[a]}
        for a, b in itertools.pairwise(edges)
    ]


def token_pieces(tokenizer: Any, reply: Reply, drift: Sequence[float]) -> list[tuple[str, float | None]]:
    """The reply's text token by token with each token's drift; tokens that are part of a character stay together."""
    pieces: list[tuple[str, float | None]] = []
    done, waiting = "", 0.0
    for i, value in enumerate(drift[: len(reply.tokens)], start=1):
        waiting = max(waiting, value)
        text = tokenizer.decode(reply.tokens[:i], skip_special_tokens=True).lstrip()
        if len(text) > len(done) and reply.text.startswith(text):
            pieces.append((text[len(done) :], waiting))
            done, waiting = text, 0.0
    return [*pieces, (reply.text[len(done) :], None)] if len(done) < len(reply.text) else pieces


@torch.no_grad()
def _fluency(
    model: Model,
    prompt: Sequence[Any],
    replies: Sequence[Reply],
    vectors: Sequence[SteeringVector],
    share: float,
    positions: str | tuple[int, ...],
) -> list[tuple[Tensor, float]]:
    """Per reply the drift of every token, and the mean log-probability under the unsteered model, nats."""
    ids, measured = render(model.tokenizer, prompt).ids, []
    for reply, vector in zip(replies, (None, *vectors), strict=True):
        batch = make_batch(model, [ids], [reply.tokens or (0,)])
        base = reply_logits(model, batch)
        kl = torch.zeros(batch.reply_mask.shape[1])
        if vector is not None:
            hooks = vector.hooks(_natural(vector, share), positions, prompt_length=batch.prompt_end)
            kl = kl_per_token(reply_logits(model, batch, hooks), base)[0].cpu()
        measured.append((kl, float(reply_logprobs(base, batch).mean())))
    return measured


def safe_until(dose: pd.DataFrame, limit: float = DRIFT_LIMIT) -> float:
    """The strength at which drift first passes ``limit``, between two measured ones in proportion."""
    x, drift = dose.strength.to_numpy(), dose.drift.to_numpy()
    above = np.flatnonzero(drift > limit)
    if not len(above):
        return float(x[-1])
    k = int(above[0])
    return float(np.interp(limit, drift[k - 1 : k + 1], x[k - 1 : k + 1])) if k else 0.0


def _natural(vector: SteeringVector, share: float) -> float:
    """A share of the residual norm as a strength, in natural differences; short enough to be read in code."""
    return round(share / vector.fraction, 3)


def _in_code(positions: str | tuple[int, ...], typed: str) -> tuple[str, str]:
    """Positions as Python, and a comment where numbers stand for a span of the chat."""
    if isinstance(positions, str):
        return json.dumps(positions), ""
    first, last = positions[0], positions[-1] + 1
    run = positions == tuple(range(first, last)) and len(positions) > 4
    return f"range({first}, {last})" if run else str(list(positions)), f"  # {typed}" if typed.strip() in SPANS else ""


def _as_dict(locus: Locus) -> dict[str, Any]:
    return {
        "name": str(locus),
        "hook_point": locus.hook_point,
        "positions": list(locus.positions),
        "head": locus.head,
        "layer": locus.layer,
    }


def _free_path(path: Path, vector: SteeringVector) -> Path:
    """The path, or one with a number where the file holds another vector."""
    candidate, number = path, 1
    while candidate.exists():
        try:
            held = SteeringVector.load(candidate)
        except StarError:
            held = None
        if held and held.fingerprint == vector.fingerprint and torch.equal(held.vector, vector.vector):
            break
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


class _Stopped(Exception):
    """The work was told to end."""


class _Stoppable(TorchFunctionMode):
    """Whatever this thread computes under it ends at its next tensor operation once ``stop`` is set."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self.stop = stop

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.stop.is_set():
            raise _Stopped
        return function(*args, **(kwargs or {}))


_TURN = threading.RLock()  # one at a time uses the model: a widget's thread, or a cell
_OPEN: weakref.WeakSet[Explorer] = weakref.WeakSet()


@functools.cache
def _give_way_to_cells() -> None:
    """From now on no widget works while a cell runs; the cell that runs now has begun already."""
    from IPython.core.getipython import get_ipython

    def begin(*_: object) -> None:
        for explorer in _OPEN:
            explorer.stop()
        _TURN.acquire()

    shell = get_ipython()
    if shell is not None:
        shell.events.register("pre_run_cell", begin)
        shell.events.register("post_run_cell", lambda *_: _TURN.release())
        _TURN.acquire()
