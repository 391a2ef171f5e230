"""The scripts as a user runs them: other processes, signals, kill -9, and mistakes on the command line."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from flax_mnv2.training.metrics_writer import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = [
    "--config=configs/quickstart.py:smoke",
    "--config.model.output_stride=16",
    "--config.data.num_threads=1",
]


def _command(script, *arguments):
    return [sys.executable, script, *map(str, arguments)]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    return os.environ | {
        "TFDS_DATA_DIR": str(tmp_path_factory.mktemp("tfds")),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PLATFORMS": "cpu",
    }


@pytest.fixture
def run(environment):
    def run(script, *arguments, check=True):
        result = subprocess.run(
            _command(script, *arguments),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check:
            assert result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def whole_run(environment, tmp_path_factory):
    """Metrics of a run that nobody interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    command = _command("train.py", *SMALL, f"--workdir={workdir}")
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def _figures(workdir):
    return [
        {name: value for name, value in line.items() if name != "images_per_second"} for line in read_metrics(workdir)
    ]


def test_train_then_eval(whole_run, run):
    workdir, printed = whole_run
    last = printed.strip().splitlines()[-2:]
    assert last[0].startswith(f"checkpoints: {workdir}/checkpoints")
    assert last[1].startswith(f"metrics:     {workdir}/metrics.jsonl")
    assert re.search(r"step 8/8: loss \d+\.\d+, learning rate", printed)
    result = run("eval.py", f"--workdir={workdir}", "--step=latest")
    assert "mean IoU" in result.stdout
    report = json.loads((workdir / "evaluation" / "val_step_8" / "metrics.json").read_text())
    assert report["num_examples"] == 80
    assert report["mean_iou"] == pytest.approx(read_metrics(workdir)[-1]["mean_iou"], abs=1e-6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])  # test_loop.py has SIGINT
def test_a_run_cut_from_outside_goes_on_as_if_it_had_not_been(whole_run, environment, tmp_path, number):
    command = _command("train.py", *SMALL, f"--workdir={tmp_path}")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        for line in process.stdout:
            if line.startswith("step 4: mean IoU"):
                deadline = time.monotonic() + 60
                while not (tmp_path / "checkpoints" / "4").is_dir() and time.monotonic() < deadline:
                    time.sleep(0.01)
                process.send_signal(number)
                break
        rest = process.stdout.read()
        status = process.wait(timeout=120)
    finally:
        process.kill()
        process.stdout.close()
    assert status == (-number if number == signal.SIGKILL else 128 + number), rest
    if number != signal.SIGKILL:
        assert f"{signal.Signals(number).name}: saved step" in rest

    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert re.search(r"going on from step [4-8]", result.stdout)
    assert _figures(tmp_path) == _figures(whole_run[0])


def test_input_workers_give_the_same_run(whole_run, run, tmp_path):
    run("train.py", *SMALL, f"--workdir={tmp_path}", "--config.data.num_workers=2")
    assert _figures(tmp_path) == _figures(whole_run[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config must have a value"),
        (["--config=configs/absent.py", "--workdir=w"], "Cannot load the recipe .*absent.py"),
        (["--config=configs/seg_voc.py:tiny", "--workdir=w"], "has the variants aug and smoke; found 'tiny'"),
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
def test_mistakes_give_one_message_and_status_2(run, tmp_path, monkeypatch, arguments, message):
    arguments = [a.replace("--workdir=w", f"--workdir={tmp_path / 'w'}") for a in arguments]
    result = run("train.py", *arguments, check=False)
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")


def test_another_runs_workdir_is_refused(whole_run, run):
    workdir, _ = whole_run
    before = sorted(path.name for path in workdir.rglob("*"))
    result = run("train.py", *SMALL, f"--workdir={workdir}", "--config.seed=1", check=False)
    assert result.returncode == 2
    assert "holds a run with another config:\n  seed: 0 there, 1 now" in result.stderr
    assert sorted(path.name for path in workdir.rglob("*")) == before


def test_a_full_disk_is_explained_and_the_older_checkpoint_stays(whole_run, environment, tmp_path):
    """A limit on the size of files stands in for the full disk; it fails a write in the same way."""
    script = (
        "import resource, runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    first = [*SMALL, f"--workdir={tmp_path}"]
    cut = _command("train.py", *first)
    process = subprocess.Popen(cut, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 4: mean IoU"):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=120)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    result = subprocess.run(
        [sys.executable, "-c", script, "train.py", *first],
        cwd=ROOT,
        env=environment | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"},  # read it, but write nothing large
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert "error: Could not save" in result.stderr
    assert "Check free space and permissions" in result.stderr
    assert (
        f'File "{ROOT / "flax_mnv2"}{os.sep}' not in result.stderr
    )  # Orbax's threads may print their own; ours end in the message
    assert set(kept) <= {path.name for path in (tmp_path / "checkpoints").iterdir()}
