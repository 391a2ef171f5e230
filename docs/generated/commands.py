"""Every command with what its ``--help`` says, without starting a process for each."""

import contextlib
import importlib
import inspect
import io
import os
import pathlib
import runpy
import unittest.mock
from collections.abc import Callable

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
_SCRIPTS = ("train.py", "eval.py")
_MODULES = {  # command → module with its ``main``
    "flax_mnv2.predict": "flax_mnv2.predict.command",
    "flax_mnv2.convert": "flax_mnv2.convert",
    "flax_mnv2.export": "flax_mnv2.export.command",
    "flax_mnv2.data.prepare": "flax_mnv2.data.prepare.command",
}
_TOOLS = {  # command → module with its ``define_flags``
    "flax_mnv2.tools.preview": "flax_mnv2.tools.preview",
    "flax_mnv2.tools.anchors": "flax_mnv2.tools.anchors",
    "flax_mnv2.tools.tpu_compile": "flax_mnv2.tools.tpu_compile.command",
}


def page() -> str:
    """Returns a section for each command."""
    parts = []
    for name in _SCRIPTS:
        module = {}
        rows = _flags(lambda name=name, module=module: module.update(runpy.run_path(str(ROOT / name))))
        parts.append(_section(f"python {name}", module["__doc__"], rows))
    for name, path in _MODULES.items():
        parts.append(_section(f"python -m {name}", "", f"```text\n{_help(path, '--help')}\n```"))
        if name.endswith("prepare"):
            parts += _data_sets(path)
    for name, path in _TOOLS.items():
        module = importlib.import_module(path)
        parts.append(_section(f"python -m {name}", inspect.getdoc(module), _flags(module.define_flags)))
    return "\n\n".join(parts)


def _section(command: str, description: str | None, options: str) -> str:
    text = f"```text\n{description.strip()}\n```\n\n" if description else ""
    return f"## `{command}`\n\n{text}{options}"


def _flags(define: Callable[[], object]) -> str:
    """Returns a table of the flags that are defined by a call, which are gone again after it."""
    before = set(flags.FLAGS)
    define()
    rows = ["| flag | default | |", "|---|---|---|"]  # --config.FIELD is told above them
    for name in [name for name in flags.FLAGS if name not in before]:
        flag = flags.FLAGS[name]
        default = "" if flag.default in (None, "") else f"`{flag.default}`"
        rows.append(f"| `--{name}` | {default} | {flag.help} |")
        delattr(flags.FLAGS, name)
    return "\n".join(rows)


def _help(path: str, *arguments: str) -> str:
    """Returns what an argparse command prints for ``--help``, as wide as this page."""
    output = io.StringIO()
    main = importlib.import_module(path).main
    wide = unittest.mock.patch.dict(os.environ, COLUMNS="110", NO_COLOR="1")
    with wide, contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main(list(arguments))
    return output.getvalue().strip()


def _data_sets(path: str) -> list[str]:
    from flax_mnv2.data.datasets.registry import DATASETS

    return [f"### `prepare {name}`\n\n```text\n{_help(path, name, '--help')}\n```" for name in (*DATASETS, "convert")]
