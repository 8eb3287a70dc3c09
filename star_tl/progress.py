"""Progress bars that a Ctrl-C cannot hold up: tqdm's own lock stays held where one falls while a bar is drawn."""

from __future__ import annotations

import threading
from typing import Any

from tqdm.auto import tqdm


class Bar(tqdm):
    """tqdm's bar, for notebooks and terminals; a later one of another thread never waits for one that was left."""

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:
        """Draw the bar anew; arguments as tqdm's."""
        if nolock or lock_args or self.disable:
            return super().refresh(nolock, lock_args)
        with self.get_lock():
            return super().refresh(nolock=True)


# Its own, and one lock instead of two, between which a Ctrl-C may fall; also, no other process has it.
Bar.set_lock(threading.RLock())
