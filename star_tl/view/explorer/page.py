"""The page's other end: its traits, what it asks for, and one piece of work at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from star_tl.errors import StarError
from star_tl.files import JsonObject
from star_tl.models.threads import hand_over
from star_tl.view.explorer.still import Stills
from star_tl.view.explorer.turns import OPEN, TURN, Stoppable, Stopped, give_way_to_cells

try:
    import anywidget
    import traitlets
except ModuleNotFoundError:
    raise StarError("The explorer needs Jupyter's widgets: pip install 'star_tl[notebook]'.") from None


class Page(anywidget.AnyWidget):
    """What ``widget.js`` draws; the work behind it runs in a thread that gives way to whatever is asked for next."""

    _esm = Path(__file__).with_name("widget.js")
    _css = Path(__file__).with_name("widget.css")
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

    def __init__(self) -> None:
        super().__init__()
        self._stop = threading.Event()
        self._stills = Stills()
        self._said, self._refused = 0, ""
        self._say("")

    def _open(self) -> None:
        """Listen to the page, once all of it can be drawn."""
        self.on_msg(self._hear)
        OPEN.add(self)
        give_way_to_cells()

    def stop(self) -> None:
        """End what goes on."""
        self._stop.set()

    def close(self) -> None:
        """Remove the widget; what goes on ends."""
        self.stop()
        super().close()

    def _do(self, do: str, **what: Any) -> None:
        raise NotImplementedError

    def _still(self) -> str:
        """What is shown, as HTML for the saved notebook."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        self._stills.show(self._still())
        return bundle

    def _hear(self, _: object, message: JsonObject, buffers: object) -> None:
        """What the page asks for."""
        self._refused, before = "", self.status
        try:
            self._do(**message)
            if self.status is before and before["error"] and not before["busy"]:  # what was wrong before is settled
                self._say(before["text"], before["progress"])
        except StarError as error:
            self._refused, going = str(error), self.status["busy"]
            self._say(self.status["text"] if going else "", self.status["progress"], going)

    def _start(self, work: Callable[[], None]) -> None:
        """Begin ``work``; what went on before ends at its next tensor operation."""
        self.stop()
        self._stop = stop = threading.Event()
        self._say("Waiting for the model …", busy=True)
        hand_over()
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
                self._stills.update(self._still())

    def _say(self, text: str, progress: float | None = None, busy: bool = False, error: str = "") -> None:
        self._said += 1  # so that the page hears the same words twice
        error = error or self._refused  # which stands until something else is asked for, whatever goes on
        self.status = {"busy": busy, "text": text, "progress": progress, "error": error, "said": self._said}
