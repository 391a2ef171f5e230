"""Ctrl-C and SIGTERM as a request to stop after the current step, or batch of an evaluation."""

from __future__ import annotations

import os
import signal
import threading

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
        self._times_asked = 0
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

    def now(self) -> bool:
        """Whether the run stops here; to be asked between any two pieces of work, equally often by all processes.

        With several processes the n-th answer is the same on all of them, and once it is yes it stays so; what they do
        together between two questions they do all or none.
        """
        if self._link is None:
            return self.signal is not None
        if self._noted is not None and not self._told:
            self._told = True
            self._link.ask_to_stop(self._noted)
        self._times_asked += 1
        number = self._link.stops_at(self._times_asked)
        self.signal = None if number is None else signal.Signals(number)
        return number is not None

    def _note(self, number: int, _) -> None:
        if self._noted is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._noted is None:
            again = "; Ctrl-C again quits at once" if number == signal.SIGINT else ""
            say_from_a_handler(f"{signal.Signals(number).name}: stopping after this step{again}")
        self._noted = signal.Signals(number)
        if self._link is None:
            self.signal = self._noted


class Interrupted(SystemExit):
    """The run was asked to stop and has saved its state; exit status 128 + signal, as shells expect."""

    def __init__(self, number: signal.Signals):
        """``number`` is the signal that asked."""
        super().__init__(128 + number)


def quit_at_second_interrupt() -> None:
    """From here on a second Ctrl-C ends this process at once, whatever it is doing; for scripts, not for notebooks.

    Python runs its own handlers between two of its instructions only, so not while a program compiles or a collective
    waits; a thread hears of signals without delay. Nothing is cleaned up, and nothing has to be: a checkpoint is whole
    or absent, and a line of metrics is written with the next.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_count_interrupts, args=(heard,), name="interrupts", daemon=True).start()


def _count_interrupts(heard: int) -> None:
    count = 0
    while count < 2:
        count += os.read(heard, 64).count(signal.SIGINT)
    say_from_a_handler("Ctrl-C twice: quits at once, without saving")
    os._exit(128 + signal.SIGINT)


def say_from_a_handler(text: str) -> None:
    """Writes a line to standard error past Python's buffers, which may be in use below a signal handler."""
    os.write(2, f"\n{text}\n".encode())
