"""Ctrl-C and SIGTERM as a request to stop after the current step."""

from __future__ import annotations

import signal


class StopRequest:
    """While active, the first SIGINT or SIGTERM is noted; a second SIGINT interrupts at once.

    Attributes:
      signal: the signal that came, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._previous = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


class Interrupted(SystemExit):
    """The run was asked to stop and has saved its state; exit status 128 + signal, as shells expect."""

    def __init__(self, number: signal.Signals):
        """``number`` is the signal that asked."""
        super().__init__(128 + number)
