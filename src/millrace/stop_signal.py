"""Ctrl-C and SIGTERM: the first asks to stop at a boundary, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

STOP_GRACE_S = 10.0
INTERRUPTED_EXIT_CODE = 130
STOPPED_BY = "stopped by"
"""What the reason of a run that a signal ended begins with."""


class StopSignal:
    """Watches for the two signals while installed; outside the main thread it does nothing.

    Args:
        on_first: told the signal's name.
        before_leaving: what must not stay behind when the second one comes.
    """

    def __init__(self, on_first: Callable[[str], None], before_leaving: Callable[[], None]) -> None:
        self._on_first, self._before_leaving = on_first, before_leaving
        self._given_s = 0.0
        self._old_handlers: dict[int, Any] = {}

    @property
    def was_given(self) -> bool:
        return self._given_s > 0

    @property
    def grace_is_over(self) -> bool:
        """Asked to stop so long ago that waiting for a boundary has become pointless."""
        return self.was_given and time.monotonic() - self._given_s > STOP_GRACE_S

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Put back whatever handled the signals before."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()

    def _handle(self, number: int, _frame: Any) -> None:
        if self.was_given:
            # Nothing is saved and nothing stays: shared memory goes with its last holder.
            self._before_leaving()
            os._exit(INTERRUPTED_EXIT_CODE)
        self._given_s = time.monotonic()
        name = signal.Signals(number).name
        self._on_first(name)
        text = f"\n{name}: stopping at the next update, in {STOP_GRACE_S:.0f} s at the latest; once more leaves at once"
        print(text, file=sys.stderr, flush=True)
