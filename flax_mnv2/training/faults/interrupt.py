"""Ctrl-C and SIGTERM as a request to stop after the current step, or batch of an evaluation."""

from __future__ import annotations

import os
import signal
import threading

from flax_mnv2.training.host_link import HostLink

_nothing_to_save = threading.Event()  # a run of one process has not trained yet; compiling may take minutes


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
        else:
            _nothing_to_save.set()
        return self

    def __exit__(self, *_) -> None:
        _nothing_to_save.clear()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._link is not None:
            self._link.end_loop()

    def must_save(self) -> None:
        """From here on an end at once would lose something."""
        _nothing_to_save.clear()

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


def quit_at_once_when_due() -> None:
    """From here on signals end this process at once where that is due; for scripts, not for notebooks.

    A second Ctrl-C does so whatever the process is doing. The first, or SIGTERM, does so while a run of one process
    has trained nothing since it was started, as while its step compiles: whoever stops machines gives half a minute.

    Python runs its own handlers between two of its instructions only, so not while a program compiles or a collective
    waits; a thread hears of signals without delay. Nothing is cleaned up, and nothing has to be: a checkpoint is whole
    or absent, and a line of metrics is written with the next.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(heard,), name="interrupts", daemon=True).start()


def _listen(heard: int) -> None:
    interrupts = 0
    while True:
        for number in os.read(heard, 64):
            interrupts += number == signal.SIGINT
            if interrupts == 2:
                say_from_a_handler("Ctrl-C twice: quits at once, without saving")
                os._exit(128 + signal.SIGINT)
            if number in (signal.SIGINT, signal.SIGTERM) and _nothing_to_save.is_set():
                name = signal.Signals(number).name
                say_from_a_handler(f"{name}: ends at once; nothing was trained since this start, so nothing is lost")
                os._exit(128 + number)


def say_from_a_handler(text: str) -> None:
    """Writes a line to standard error past Python's buffers, which may be in use below a signal handler."""
    os.write(2, f"\n{text}\n".encode())
