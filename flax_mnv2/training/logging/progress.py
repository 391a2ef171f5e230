"""What a person sees while waiting: a bar on a terminal, plain lines elsewhere."""

import sys
import time

import jax


class Progress:
    """Counts steps in a context; on a terminal it draws a bar. With several processes only process 0 is seen."""

    def __init__(self, total: int, title: str, examples_per_step: int, *, start: int = 0):
        """``total`` steps in all, of which ``start`` are done."""
        self._total, self._title, self._examples = total, title, examples_per_step
        self._done = self._start = start
        self._began: float | None = None
        self._bar = None
        self._leads = jax.process_index() == 0

    def __enter__(self) -> "Progress":
        if self._leads and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=self._start, desc=self._title, leave=False)
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        """Counts one more step. The first one compiles and starts the clock."""
        self._done += 1
        if self._began is None:
            self._began, self._start = time.perf_counter(), self._done
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix_str(f"{self.examples_per_second():.1f} images/s")

    def exclude(self, seconds: float) -> None:
        """Leaves time spent on something else (an evaluation, a save) out of the rate."""
        if self._began is not None:
            self._began += seconds

    def examples_per_second(self) -> float:
        """Returns the mean rate since the first step, 0 before there is one."""
        if self._done == self._start:
            return 0.0
        elapsed = time.perf_counter() - self._began
        return (self._done - self._start) * self._examples / max(elapsed, 1e-9)

    def time_left(self) -> str:
        """Returns the estimated time to the end, as h:mm:ss, or ?"""
        rate = self.examples_per_second()
        if rate < 1e-6:
            return "?"
        seconds = int((self._total - self._done) * self._examples / rate)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def write(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line)
        elif self._leads:
            print(line, flush=True)
