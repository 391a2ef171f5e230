"""Ctrl-C and SIGTERM as a request to stop after the current step, or batch of an evaluation."""

import itertools
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

_nothing_to_save = threading.Event()  # a run of one process has not trained yet; compiling may take minutes
_questions = itertools.count(1)  # of this process, in all its runs; JAX agrees with the others on one of them


class StopRequest:
    """While active, the first SIGINT or SIGTERM is noted; a second SIGINT interrupts at once.

    With several processes SIGTERM is JAX's preemption notice: one process gets it, and all stop at the same question,
    a second or two later. SIGINT then interrupts the process that it reaches, which saves nothing. ``signal`` is that
    for which the run stops, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._together = jax.process_count() > 1
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if not self._together:
            for number in (signal.SIGINT, signal.SIGTERM):  # beside others a handler of ours would take JAX's place
                self._previous[number] = signal.signal(number, self._note)
            _nothing_to_save.set()
        return self

    def __exit__(self, *_) -> None:
        _nothing_to_save.clear()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def must_save(self) -> None:
        """Notes that from here on an end at once would lose something."""
        _nothing_to_save.clear()

    def now(self) -> bool:
        """Returns whether the run stops here; all processes ask equally often, between any two pieces of work.

        With several processes the n-th answer is the same on all of them, and once it is yes it stays so; what they do
        together between two questions they do all or none.
        """
        if self._together and self.signal is None and multihost_utils.reached_preemption_sync_point(next(_questions)):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _note(self, number: int, _) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            again = "; Ctrl-C again quits at once" if number == signal.SIGINT else ""
            say_from_a_handler(f"{signal.Signals(number).name}: stopping after this step{again}")
        self.signal = signal.Signals(number)


class Interrupted(SystemExit):
    """The run was asked to stop and has saved its state; exit status 128 + signal, as shells expect."""


def quit_at_once_when_due() -> None:
    """Lets signals end this process at once where that is due; for scripts, not for notebooks.

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
