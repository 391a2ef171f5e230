"""The scripts as a user runs them, and mistakes on the command line; tests/faults/ has signals and kill -9.

One run and one mistake of an evaluation have processes of their own; everything else shares this one.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest
import scripts

import flax_mnv2.training.evaluate as evaluate_run_module
from flax_mnv2.report.command import main as report_on_run
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.parallel import make_parallel

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = [
    "--config=configs/quickstart.py:smoke",
    "--config.model.output_stride=16",
    "--config.model.layer_depth_multiplier=0.25",
    "--config.data.num_threads=1",
    "--config.data.crop_size=48,48",
]

# python SCRIPT …, with the network of the fixture tiny_blocks and fewer shapes, as prepare_shapes draws
TINY = """\
import runpy, sys, flax_mnv2.data.datasets.shapes, flax_mnv2.layer_plan
flax_mnv2.data.datasets.shapes.SHAPES_NUM_EXAMPLES = {"train": 96, "val": 16}
flax_mnv2.layer_plan.BLOCK_TABLE = ((8, 1, 2), (16, 2, 2))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    return os.environ | {
        "TFDS_DATA_DIR": str(tmp_path_factory.mktemp("tfds")),
        "JAX_PLATFORMS": "cpu",
    }


def _run(environment, *command):
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def whole_run(environment, tmp_path_factory):
    """The folder of a run that nobody interrupted, and what it printed."""
    workdir = tmp_path_factory.mktemp("whole")
    result = _run(environment, "-c", TINY, "train.py", *SMALL, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_train_then_eval(whole_run, environment, tiny_blocks, monkeypatch):
    workdir, printed = whole_run
    last = printed.strip().splitlines()[-4:]
    assert last[0].startswith(f"checkpoints: {workdir}/checkpoints")
    assert last[1].startswith(f"metrics:     {workdir}/metrics.jsonl")
    assert last[2] == f"curve:       {workdir}/learning_curve.png"
    assert last[3] == f"report:      {workdir}/report.html"
    assert re.search(r"step 8/8: loss \d+\.\d+, learning rate", printed)
    # Without --config the run's own is overridden, and a field that it does not have is named.
    monkeypatch.setenv("TFDS_DATA_DIR", environment["TFDS_DATA_DIR"])
    one_device = make_parallel("jit", jax.devices()[:1])  # as that process had
    monkeypatch.setattr(evaluate_run_module, "make_parallel", lambda _: one_device)
    result = scripts.run("eval.py", f"--workdir={workdir}", "--step=latest", "--config.eval.batch_size=16")
    assert result.returncode == 0, result.stderr
    assert "mean IoU" in result.stdout
    report = json.loads((workdir / "evaluation" / "val_step_8" / "metrics.json").read_text())
    assert report["num_examples"] == 16
    assert report["mean_iou"] == pytest.approx(read_metrics(workdir)[-1]["mean_iou"], abs=1e-6)

    before = (workdir / "report.html").read_text(encoding="utf-8")
    assert report_on_run([str(workdir)]) == 0
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert (before.count("data:image"), page.count("data:image")) == (0, 4)  # confusion, worst, best, first
    assert "The run is finished." in page
    assert f"python eval.py --workdir {workdir}" in before
    for text in ("1 cpu: ", "fraction of the pixels", "triangle", "val_step_8"):
        assert text in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config must have a value"),
        (["--config=configs/absent.py", "--workdir=w"], "Cannot load the recipe .*absent.py"),
        (["--config=configs/seg_voc.py:tiny", "--workdir=w"], "has the variants aug, plus and smoke; found 'tiny'"),
        ([*SMALL, "--workdir=w", "--config.batch_sze=4"], 'Did you mean "batch_size"'),
        ([*SMALL, "--workdir=w", "--config.batch_size=many"], "batch_size=many"),
        ([*SMALL, "--workdir=w", "--config.data.crop_size=0,0"], "config.data.crop_size must be a pair"),
        ([*SMALL, "--workdir=w", "--config.data.crop_size=-64,-64"], "config.data.crop_size must be a pair"),
        ([*SMALL, "--workdir=w", "--workdri=x"], "Unknown command line flag 'workdri'"),
        ([*SMALL, "--workdir=w", "stray"], "Unexpected argument 'stray'"),
        ([*SMALL, "--workdir=/proc/none/run"], "Cannot write in the workdir"),
        ([*SMALL, "--workdir=w", "--config.data.dataset=coco"], "expected one of voc_segmentation/2012"),
        ([*SMALL, "--workdir=w", "--config.init_from=./absent"], "No folder ./absent"),
        (["--config=configs/cls_imagenet.py:papr", "--workdir=w"], "takes SIZE,RECIPE, such as 1.0_224,paper"),
        (["--config=configs/cls_imagenet.py", "--workdir=w", "--config.data.archive=absent"], "No ImageNet in absent"),
        ([*SMALL, "--workdir=gs://bucket/run"], "must be a folder of a file system; found gs:"),
    ],
)
def test_mistakes_give_one_message_and_status_2(environment, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv("TFDS_DATA_DIR", environment["TFDS_DATA_DIR"])
    arguments = [a.replace("--workdir=w", f"--workdir={tmp_path / 'w'}") for a in arguments]
    result = scripts.run("train.py", *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")


def test_an_evaluation_overrides_the_recorded_config_by_its_own_fields(whole_run, environment):
    workdir, _ = whole_run
    for place in (f"--workdir={workdir}", f"--checkpoint={workdir}/checkpoints/step_8"):
        result = scripts.run("eval.py", place, "--config.data.archiv=elsewhere")
        assert (result.returncode, result.stderr.splitlines()[0][:6]) == (2, "error:")
        assert 'Did you mean "archive"' in result.stderr
    result = _run(environment, "eval.py", "--workdir=absent", "--config.data.archive=elsewhere")
    assert result.returncode == 2
    assert "absent holds no config.json" in result.stderr


def test_another_runs_workdir_is_refused(whole_run):
    workdir, _ = whole_run
    before = sorted(path.name for path in workdir.rglob("*"))
    result = scripts.run("train.py", *SMALL, f"--workdir={workdir}", "--config.seed=1")
    assert result.returncode == 2
    assert "holds a run with another config:\n  seed: 0 there, 1 now" in result.stderr
    assert sorted(path.name for path in workdir.rglob("*")) == before
