"""The tutorials run from top to bottom: in a process of their own, on one device, as a reader has them."""

import os
import pathlib
import subprocess
import sys

import quick_xla

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Two of them go on from the first one's run, so all run in one folder, in this order.
PAGES = (
    "classify_your_photos",
    "quantise_and_export",
    "read_a_run",
    "segment_your_masks",
    "detect_your_boxes",
    "backbone_in_your_loop",
    "weights_in_and_out",
)


def test_the_tutorials_run(tmp_path):
    program = ROOT / "tests" / "helpers" / "programs" / "run_tutorials.py"
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": quick_xla.FLAGS, "MPLBACKEND": "agg"}
    command = [sys.executable, str(program), *PAGES]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-4000:]
    assert [line.partition(": ran in")[0] for line in result.stdout.splitlines() if ": ran in" in line] == list(PAGES)


def test_every_tutorial_is_run():
    assert sorted(PAGES) == sorted(path.stem for path in (ROOT / "docs" / "tutorials").glob("[!i]*.md"))
