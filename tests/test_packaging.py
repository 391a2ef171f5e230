"""What is installed says what it needs: one list of versions, messages that name the extra, types for a checker."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec

import pytest

from flax_mnv2 import CheckpointError
from flax_mnv2.weights import tensor_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMANDS = {
    "train.py": "runpy.run_path('train.py', run_name='__main__')",
    "eval.py": "runpy.run_path('eval.py', run_name='__main__')",
    "data.prepare": "runpy.run_module('flax_mnv2.data.prepare', run_name='__main__', alter_sys=True)",
    "preview": "runpy.run_module('flax_mnv2.tools.preview', run_name='__main__', alter_sys=True)",
    "anchors": "runpy.run_module('flax_mnv2.tools.anchors', run_name='__main__', alter_sys=True)",
    "report": "runpy.run_module('flax_mnv2.report', run_name='__main__', alter_sys=True)",
    "tpu_compile": "runpy.run_module('flax_mnv2.tools.tpu_compile', run_name='__main__', alter_sys=True)",
}
MODULES = ("flax_mnv2.training.config.defaults", "flax_mnv2.data.datasets.registry")
LIBRARY = "import flax_mnv2.convert, flax_mnv2.predict.command as c; sys.exit(c.main(['--help']))"
# The library first: what it needs, nothing else has imported by then.
WITHOUT_TRAIN = """\
import contextlib, io, json, runpy, sys, traceback
sys.modules |= dict.fromkeys(('ml_collections', 'tensorflow_datasets', 'cv2', 'grain'))
ended = {}
for code in json.loads(sys.argv.pop()):
    status, error = 0, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            exec(code)
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
    ended[code] = (status, error.getvalue())
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def without_train():
    """Statement → exit status and stderr of it, one after the other in one process that lacks the extra."""
    code = json.dumps([LIBRARY, *COMMANDS.values(), *(f"import {module}" for module in MODULES)])
    command = [sys.executable, "-c", WITHOUT_TRAIN, code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_wheel_built_from_the_source_archive_has_every_module(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "flax_mnv2", tmp_path / "flax_mnv2", ignore=shutil.ignore_patterns("__pycache__"))

    def build(what, folder):
        code = f"import setuptools.build_meta as backend; print(backend.build_{what}({str(tmp_path)!r}))"
        ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return tmp_path / ended.stdout.split()[-1]

    with tarfile.open(build("sdist", tmp_path)) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    with zipfile.ZipFile(build("wheel", source)) as archive:
        names = set(archive.namelist())
    files = (path for path in (ROOT / "flax_mnv2").rglob("*") if path.suffix in (".py", ".txt", ".typed"))
    assert {str(path.relative_to(ROOT)) for path in files} <= names


def test_requirements_are_those_of_the_package_and_its_extra():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(filter(None, lines)) == sorted(project["dependencies"] + project["optional-dependencies"]["train"])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_without_its_extra_names_it(without_train, name):
    status, error = without_train[COMMANDS[name]]
    assert status == 2
    assert re.fullmatch(r"error: This needs \w+, .*pip install 'flax-mnv2\[train\]'.*\n", error)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_without_its_extra_names_it(without_train, module):
    status, error = without_train[f"import {module}"]
    assert status == 1
    assert re.search(r"^ModuleNotFoundError: This needs .*flax-mnv2\[train\]", error, re.MULTILINE)


def test_a_library_without_the_extra_does_what_inference_needs(without_train):
    status, error = without_train[LIBRARY]
    assert status == 0, error


def test_a_file_of_pytorch_without_it_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pip install 'flax-mnv2\[torch\]'"):
        tensor_files.read_tensor_file(path)


@pytest.mark.skipif(not find_spec("mypy"), reason="mypy is not installed; requirements-test.txt names it")
def test_a_users_program_passes_the_type_checker():
    user = ROOT / "tests" / "helpers" / "programs" / "user_program.py"
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--warn-unused-ignores", user]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
