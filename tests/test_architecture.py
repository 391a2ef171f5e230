"""Imports only go down, and importing the library stays light."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flax_mnv2"
# A module may import from its own floor and those below.
FLOORS = {
    "version": 0,
    "errors": 0,
    "files": 0,
    "class_names": 0,
    "compilation_cache": 0,
    "devices": 0,
    "hub": 0,
    "layer_plan": 0,
    "config": 0,
    "models": 1,
    "detection": 1,
    "losses": 1,
    "metrics": 1,
    "mixing": 1,
    "image_processing": 1,
    "visualize": 1,
    "checkpoint": 2,
    "weights": 3,
    "data": 4,
    "export": 4,
    "tasks": 5,
    "training": 6,
    "predict": 6,
    "tools": 7,
    "report": 7,
    "convert": 7,
}
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "torch",
    "matplotlib",
    "orbax",
    "cv2",
    "ml_collections",
)


def _modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def _floor(dotted):
    return FLOORS[dotted.split(".")[1]]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    own = FLOORS[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "flax_mnv2":
                names = [f"flax_mnv2.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("flax_mnv2."):
                assert _floor(name) <= own, f"{path.name} imports {name}, a floor above its own"


def test_importing_the_library_loads_jax_flax_and_numpy_only():
    script = f"import sys, flax_mnv2; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_file_names_a_package_registry():
    host = "py" + "pi.org"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = [ROOT / name for name in tracked if not name.endswith((".png", ".jpg"))]
    assert [path.name for path in texts if path.is_file() and host in path.read_text(errors="ignore")] == []
