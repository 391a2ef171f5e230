"""Ctrl-C and SIGTERM as a request to stop after the current step."""

from __future__ import annotations

import signal

from flax_mnv2.training.host_link import HostLink


class StopRequest:
    """While active, the first SIGINT or SIGTERM is noted; a second SIGINT interrupts at once.

    Attributes:
      signal: for which the run stops, or None. With several processes the one that all have agreed on.
    """

    def __init__(self, link: HostLink | None = None):
        """``link`` joins the processes of a run; None where there is one."""
        self.signal: signal.Signals | None = None
        self._link = link
        self._noted: signal.Signals | None = None
        self._told = False
        self._previous = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        if self._link is not None:
            self._link.begin_loop()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._link is not None:
            self._link.end_loop()

    def at(self, step: int) -> bool:
        """Whether the run stops at this step; to be asked at every step, by all processes.

        With several processes the answer for one step is the same on all of them and whenever it is asked, so what
        they do together between two steps they do all or none.
        """
        if self._link is None:
            return self.signal is not None
        if self._noted is not None and not self._told:
            self._told = True
            self._link.ask_to_stop(self._noted)
        number = self._link.stops_at(step)
        self.signal = None if number is None else signal.Signals(number)
        return number is not None

    def _note(self, number: int, _) -> None:
        if self._noted is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = signal.Signals(number)
        if self._link is None:
            self.signal = self._noted


class Interrupted(SystemExit):
    """The run was asked to stop and has saved its state; exit status 128 + signal, as shells expect."""

    def __init__(self, number: signal.Signals):
        """``number`` is the signal that asked."""
        super().__init__(128 + number)
