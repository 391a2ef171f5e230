"""Runs the scripts of this repository inside this process, as ``python SCRIPT …`` would: without seconds of imports.

The same code runs from the script's first line, its flags are parsed by absl as they are, and what it prints and its
exit status come back. A process of its own shows what this cannot: imports, signals, and the end of the process.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import runpy
import sys
import traceback
from collections.abc import Callable

import jax
import pytest
from absl import app, flags, logging

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Ended:
    """What came of a script, as :class:`subprocess.CompletedProcess` has it."""

    returncode: int
    stdout: str
    stderr: str


def run(script: str | Callable[[], None], *arguments: object) -> Ended:
    """Runs a script of the repository's root, or what a module does below ``if __name__ == "__main__"``."""
    path = os.fspath(ROOT / script) if isinstance(script, str) else "command"
    argv = [path, *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    jax.devices()  # from now on as many as conftest.py asks for, whatever a script asks for
    verbosity = logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(ROOT)
        patch.syspath_prepend(ROOT)
        patch.setattr(sys, "argv", argv)  # ml_collections reads overrides there
        patch.setattr(app, "run", lambda main, flags_parser: sys.exit(main(flags_parser(sys.argv))))
        patch.setattr("flax_mnv2.training.cli.quit_at_once_when_due", lambda: None, raising=False)
        try:
            if isinstance(script, str):
                runpy.run_path(path, run_name="__main__")
            else:
                script()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        except Exception:
            traceback.print_exc()
            status = 1
        finally:
            _forget_flags(path)
            logging.set_verbosity(verbosity)
    return Ended(status, out.getvalue(), err.getvalue())


def _forget_flags(script: str) -> None:
    """Those of the script and of ours; libraries keep the flags that they defined when they were imported."""
    for name in list(flags.FLAGS):
        module = flags.FLAGS.find_module_defining_flag(name)
        if module in (script, "__main__") or name.startswith("config.") or module.startswith("flax_mnv2."):
            delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
