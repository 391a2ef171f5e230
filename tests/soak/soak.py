"""Runs broken many times over, in every way that the tests beside it know once: make soak

    python tests/soak/soak.py                          # about an hour on two cores
    python tests/soak/soak.py --only kill-saves,damage --times 200

Seeds are fixed; at what moments signals arrive follows from the machine as well. Prints a table, and with ``--output``
puts it into a Markdown file between two marks.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helpers"))  # helpers of the tests
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the library

import harness
from absl import logging
from harness import Child, differences, run

BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"
DEFAULT_TIMES = 50
CHAIN_LENGTH = 6  # cuts of one run, at most
STOP_WITHIN = 30.0  # seconds that a run may take to save and end


@dataclasses.dataclass
class Row:
    """What came of one kind of fault.

    Attributes:
      fault: what was done.
      tried: how often.
      lost: what went wrong, a text each; empty where all was survived.
      figure: what was measured beside it.
    """

    fault: str
    tried: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    figure: str = ""

    def cells(self) -> tuple[str, ...]:
        """Of the table."""
        return self.fault, str(self.tried), str(self.tried - len(self.lost)), str(len(self.lost)), self.figure


@dataclasses.dataclass
class Soak:
    """Where the scenarios work, and how much they do."""

    folder: pathlib.Path
    times: int
    data: harness.Data

    def scaled(self, count: int) -> int:
        """A number of repetitions, by ``--times``."""
        return max(1, round(count * self.times / DEFAULT_TIMES))

    def place(self, name: str) -> pathlib.Path:
        """An empty folder."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def say(line: str) -> None:
    """What happens, with the time."""
    print(f"{datetime.datetime.now():%H:%M:%S} {line}", flush=True)


# ---- cut and resumed ------------------------------------------------------------------------------------------------


def _cut_until_done(soak: Soak, row: Row, variant: str, numbers, rng: random.Random, *options: str, devices=1) -> float:
    """Cuts a run at random moments until it comes to its end, then compares it with one that nobody cut."""
    folder = soak.place(f"{row.fault}-{variant}")
    flags = [*soak.data.flags(variant), *options]
    whole = folder / "whole"
    run("train.py", *flags, f"--workdir={whole}", devices=devices)
    slowest, began, trouble = 0.0, row.tried, []
    for cut in range(CHAIN_LENGTH + 1):
        with Child("train.py", *flags, f"--workdir={folder / 'cut'}", devices=devices) as child:
            child.wait_for("the first one compiles")
            if cut < CHAIN_LENGTH:
                if rng.random() < 0.75:  # else it compiles still
                    child.wait_for(": loss")
                time.sleep(rng.uniform(0.1, 3.0))
            number = rng.choice(numbers)
            moment = child.send(number) if cut < CHAIN_LENGTH and child.running else None
            status = child.end()
            if status == 0:
                break
            row.tried += 1
            seconds = time.monotonic() - (moment or time.monotonic())
            slowest = max(slowest, seconds)
            say(
                f"{variant}: {number.name}, status {status} after {seconds:.1f} s, kept {harness.steps(folder / 'cut')}"
            )
            if moment is None or status != 128 + number:
                trouble.append(f"{variant}: status {status}:\n{child.printed}")
                break
            if number != signal.SIGKILL and seconds > STOP_WITHIN:
                trouble.append(f"{variant}: {seconds:.0f} s to stop")
    trouble = trouble or differences(whole, folder / "cut", kept=False)
    if not trouble:
        reports = []
        for name in ("whole", "cut"):
            run(
                "eval.py",
                f"--workdir={folder / name}",
                "--step=latest",
                f"--output={folder / 'report'}",
                devices=devices,
            )
            reports.append(json.loads((folder / "report" / "metrics.json").read_text()) | {"model": ""})
        trouble = [] if reports[0] == reports[1] else ["eval.py reports something else"]
    for text in trouble:
        say(f"LOST {text}")
    row.tried = max(row.tried, began + 1)
    row.lost += ["; ".join(trouble)] if trouble else []
    return slowest


VARIANTS = (
    ("segmentation", 1, ("--config.data.num_workers=0",)),
    ("classification", 2, ("--config.parallel=pmap",)),
    ("classification", 1, ("--config.data.num_workers=2",)),
    ("segmentation", 2, ("--config.parallel=pmap", "--config.data.num_workers=2")),
)


def stop_random(soak: Soak) -> list[Row]:
    """SIGTERM and Ctrl-C at random moments of a run, again and again."""
    row, rng, slowest = (
        Row("SIGTERM or Ctrl-C at random moments, resumed, compared with an uncut run"),
        random.Random(10),
        0.0,
    )
    for variant, devices, options in itertools.islice(itertools.cycle(VARIANTS), soak.scaled(4)):
        numbers = (signal.SIGTERM, signal.SIGINT)
        slowest = max(slowest, _cut_until_done(soak, row, variant, numbers, rng, *options, devices=devices))
    row.figure = f"slowest stop {slowest:.1f} s; arrays, metrics, events, report the same bit for bit"
    return [row]


def kill_random(soak: Soak) -> list[Row]:
    """Kill -9 at random moments of a run, again and again."""
    row, rng = Row("kill -9 at random moments, resumed, compared with an uncut run"), random.Random(11)
    for variant, devices, options in itertools.islice(itertools.cycle(VARIANTS), soak.scaled(4)):
        _cut_until_done(soak, row, variant, (signal.SIGKILL,), rng, *options, devices=devices)
    row.figure = "arrays, metrics, events, report the same bit for bit"
    return [row]


def stop_quickstart(soak: Soak) -> list[Row]:
    """How long the quickstart model takes to save and end."""
    rows = []
    moments = [
        ("compiling", "the first one compiles", 3.0),
        ("training", "step 20/", 0.0),
        ("evaluating", "step 30/", 1.0),
    ]
    flags = ["--config=configs/quickstart.py", f"--config.data.data_dir={soak.data.folder / 'prepared'}"]
    flags += ["--config.eval_every_steps=30", "--config.checkpoint.every_steps=30"]
    for number in (signal.SIGTERM, signal.SIGINT):
        row, slowest = Row(f"{number.name} to the quickstart model: compiling, training, evaluating"), {}
        for what, line, pause in moments * soak.scaled(1):
            workdir = soak.place("quickstart")
            with Child("train.py", *flags, f"--workdir={workdir}", blocks=None, environment={"XLA_FLAGS": ""}) as child:
                child.wait_for(line)
                time.sleep(pause)
                moment = child.send(number)
                status, seconds = child.end(), time.monotonic() - moment
            row.tried += 1
            slowest[what] = max(seconds, slowest.get(what, 0.0))
            say(f"quickstart, {what}: {number.name}, status {status} after {seconds:.1f} s")
            saved = bool(harness.steps(workdir))
            if status != 128 + number or seconds > STOP_WITHIN or saved == (what == "compiling"):
                row.lost.append(child.printed)
        row.figure = "slowest: " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in slowest.items())
        rows.append(row)
    return rows


def second_ctrl_c(soak: Soak) -> list[Row]:
    """Ctrl-C twice."""
    row, rng, slowest = Row("Ctrl-C twice, saves going on"), random.Random(12), 0.0
    flags = [*soak.data.flags("plain"), "--config.num_steps=100000", "--config.eval_every_steps=100000"]
    flags += ["--config.checkpoint.every_steps=1"]
    for _ in range(soak.scaled(6)):
        workdir = soak.place("twice")
        with Child("train.py", *flags, f"--workdir={workdir}") as child:
            child.wait_for("step 6/")
            child.send(signal.SIGINT)
            time.sleep(rng.uniform(0.0, 0.2))
            moment = child.send(signal.SIGINT)
            status, seconds = child.end(), time.monotonic() - moment
        row.tried, slowest = row.tried + 1, max(slowest, seconds)
        broken = [step for step in harness.steps(workdir) if harness.arrays(workdir, step)["training['step']"] != step]
        say(f"twice: status {status} after {seconds:.1f} s, kept {harness.steps(workdir)}")
        if status != 130 or broken or not harness.steps(workdir):
            row.lost.append(child.printed)
    row.figure = f"slowest end {slowest:.1f} s; checkpoints whole"
    return [row]


def two_processes(soak: Soak) -> list[Row]:
    """A signal to one of two processes: both stop at the same step, and go on together."""
    row, slowest = Row("SIGTERM to one of two processes, training or evaluating; all stop, go on together"), 0.0
    moments = [("training", 5, 1), ("evaluating", 1, 0), ("evaluating", 2, 1)]
    folder = soak.place("two")
    flags = [*soak.data.flags("plain"), "--config.num_steps=24", "--config.eval.batch_size=4"]
    with harness.two_processes(*flags, f"--workdir={folder / 'whole'}") as whole:
        statuses = [process.end() for process in whole]
    row.lost += [] if statuses == [0, 0] else [f"uncut: {statuses} {whole[0].printed} {whole[1].printed}"]
    for number in range(soak.scaled(3)):
        during, at, told = moments[number % len(moments)]
        workdir = f"--workdir={folder / str(number)}"
        fault = {"signal": "SIGTERM", "during": during, "at": at}
        with harness.two_processes(*flags, workdir, faults={told: fault}, pace=0.5) as two:
            two[told].wait_for("fault: ")
            moment = time.monotonic()
            statuses = [process.end() for process in two]
            slowest = max(slowest, time.monotonic() - moment)
        kept = harness.steps(folder / str(number))
        with harness.two_processes(*flags, workdir) as on:
            statuses += [process.end() for process in on]
        row.tried += 1
        trouble = [] if statuses == [143, 143, 0, 0] else [f"{statuses} {two[0].printed} {two[1].printed}"]
        trouble = trouble or differences(folder / "whole", folder / str(number), kept=False)
        say(f"two processes, {during}: process {told} told, kept {kept}; {trouble or 'the same in the end'}")
        row.lost += [str(trouble)] if trouble else []
    row.figure = f"both ended within {slowest:.1f} s; the end is the same bit for bit"
    return [row]


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def kill_saves(soak: Soak) -> list[Row]:
    """Kill -9 at random moments while states are saved one after another."""
    result = harness.kill_saves(soak.place("saves"), times=soak.times, rng=random.Random(13), say=say)
    for text in result.wrong:
        say(f"LOST {text}")
    figure = f"{result.going_on} of {result.tried + 1} starts found a checkpoint, all of them right bit for bit"
    return [Row("kill -9 during saves (saver.py)", result.tried, result.wrong, figure)]


def kill_saves_in_training(soak: Soak) -> list[Row]:
    """Kill -9 of a run that saves at every step; what is left is compared with a run that keeps every step."""
    row, rng = Row("kill -9 during saves (train.py, a checkpoint every step)"), random.Random(14)
    folder = soak.place("every-step")
    flags = [*soak.data.flags("plain"), "--config.num_steps=40", "--config.eval_every_steps=100"]
    flags += ["--config.checkpoint.every_steps=1"]
    run("train.py", *flags, f"--workdir={folder / 'all'}", "--config.checkpoint.keep_last=1000")
    right = {step: harness.arrays(folder / "all", step) for step in harness.steps(folder / "all")}
    compared = 0
    for number in range(soak.scaled(10)):
        workdir = folder / f"{number // 4}"  # the fifth begins anew
        with Child("train.py", *flags, f"--workdir={workdir}") as child:
            child.wait_for(": loss", timeout=120)
            time.sleep(rng.uniform(0.2, 4.0))  # some saves, and into the next
            child.send(signal.SIGKILL)
            child.end()
        row.tried += 1
        found = harness.steps(workdir)
        wrong = [step for step in found if harness.different_arrays(right[step], harness.arrays(workdir, step))]
        compared += len(found)
        say(f"every step: left {harness.names(workdir / 'checkpoints')}")
        if wrong or "Error" in child.printed or "error" in child.printed:
            row.lost.append(f"{wrong}: {child.printed}")
    row.figure = f"{compared} checkpoints compared bit for bit"
    return [row]


def damage(soak: Soak) -> list[Row]:
    """Every file of the newest checkpoint: a flipped bit, a cut, nothing left."""
    from flax_mnv2.checkpoint.run import Checkpoints

    folder = soak.place("damage")
    flags = [*soak.data.flags("classification"), "--config.num_steps=8"]
    run("train.py", *flags, f"--workdir={folder / 'whole'}")
    rows = {
        "flip": Row("a bit of the newest checkpoint flipped, every file"),
        "truncate": Row("a file of the newest checkpoint cut short, every file"),
        "empty": Row("a file of the newest checkpoint emptied, every file"),
    }
    rng, good, source = random.Random(15), harness.arrays(folder / "whole", 8), folder / "whole" / "checkpoints"
    unnoticed = dict.fromkeys(rows, 0)
    for path, kind in harness.damages(source / "step_8", positions=soak.scaled(5)):
        shutil.rmtree(folder / "run", ignore_errors=True)
        shutil.copytree(source, folder / "run" / "checkpoints")
        harness.damage(folder / "run" / "checkpoints" / "step_8" / path, kind, rng)
        rows[kind].tried += 1
        try:
            with Checkpoints(folder / "run" / "checkpoints") as checkpoints:
                step = checkpoints.newest_whole_step()
            right = step == 4 or not harness.different_arrays(good, harness.arrays(folder / "run", 8))
        except Exception as error:  # whatever it is, it is no way to treat a run
            step, right = None, False
            say(f"{type(error).__name__}: {error}")
        unnoticed[kind] += step == 8
        if not right:
            rows[kind].lost.append(f"{kind} {path}: step {step}")
            say(f"LOST {kind} {path}: step {step}")
    for kind, row in rows.items():
        row.figure = (
            f"{row.tried - unnoticed[kind]} found, {unnoticed[kind]} in bytes that carry nothing; no wrong state"
        )
    return list(rows.values())


def damage_in_training(soak: Soak) -> list[Row]:
    """The same through train.py: it goes on from the one before and ends as if nothing had been."""
    row, rng = Row("a damaged newest checkpoint, the run goes on (train.py)"), random.Random(16)
    folder = soak.place("damaged-run")
    flags = [*soak.data.flags("plain"), "--config.num_steps=8"]
    run("train.py", *flags, f"--workdir={folder / 'whole'}")
    for _ in range(soak.scaled(5)):
        shutil.rmtree(folder / "run", ignore_errors=True)
        shutil.copytree(folder / "whole", folder / "run")
        kind = rng.choice(("flip", "truncate"))
        harness.damage(harness.largest_file(folder / "run" / "checkpoints" / "step_8"), kind, rng)
        strict = run("train.py", *flags, f"--workdir={folder / 'run'}", "--strict", expect=2)
        printed = run("train.py", *flags, f"--workdir={folder / 'run'}")
        row.tried += 1
        named = all("checkpoints/step_8" in text and "damaged" in text for text in (strict, printed))
        if not named or differences(folder / "whole", folder / "run"):
            row.lost.append(printed)
        say(f"damaged ({kind}): {'named, and gone on from 4' if named else 'LOST'}")
    row.figure = "--strict stops with status 2; else the end is the same bit for bit"
    return [row]


def full_disk(soak: Soak) -> list[Row]:
    """A disk without room for the next checkpoint; needs root, which may mount one."""
    rows = []
    flags = [*soak.data.flags("plain"), "--config.num_steps=60", "--config.checkpoint.every_steps=4"]
    flags += ["--config.eval_every_steps=60", "--config.log_every_steps=4"]
    whole = soak.place("disk-whole")
    run("train.py", *flags, f"--workdir={whole}")
    for action in ("stop", "continue"):
        row = Row(f"disk full while training, config.checkpoint.on_error={action}")
        for _ in range(soak.scaled(3)):
            disk = soak.place("disk")
            mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], capture_output=True)
            if mounted.returncode:
                row.figure = "not tried: no permission to mount a small disk"
                break
            try:
                _fill_and_free(row, flags, whole, disk, action)
            finally:
                subprocess.run(["umount", disk], check=True)
        row.figure = row.figure or "older checkpoints whole; with room again the end is the same bit for bit"
        rows.append(row)
    return rows


def _fill_and_free(row, flags, whole, disk, action) -> None:
    ballast, workdir = disk / "ballast", disk / "run"
    flags = [*flags, f"--workdir={workdir}", f"--config.checkpoint.on_error={action}"]
    with Child("train.py", *flags) as child:
        while child.running and not harness.steps(workdir):
            time.sleep(0.01)
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        child.wait_for("Could not save", timeout=120)
        ballast.unlink()
        status = child.end()
    row.tried += 1
    left = harness.steps(workdir)
    trouble = [] if "Could not save" in child.printed else ["nothing failed"]
    if action == "stop":
        trouble += [] if status == 2 and left else [f"status {status}, {left} left"]
        run("train.py", *flags)
    elif status:
        trouble.append(f"status {status}")
    trouble += differences(whole, workdir, kept=False)
    say(f"full disk, {action}: status {status}, left {left}; {'; '.join(trouble) or 'the same in the end'}")
    if trouble:
        row.lost.append(f"{trouble}\n{child.printed}")


# ---- input and numbers ----------------------------------------------------------------------------------------------


def poisoned(soak: Soak) -> list[Row]:
    """An example whose loss is NaN, another each time: stop and name it, or skip, cut by kill -9 or not."""
    from flax_mnv2.tasks.registry import get_task

    config = soak.data.config("plain")
    source = get_task(config.task).load_dataset(config.data).source(config.data.train_split)
    rows = [Row(f"an example whose loss is NaN, config.non_finite.action={action}") for action in ("stop", "skip")]
    rng, skipped = random.Random(18), 0
    flags = [*soak.data.flags("plain"), "--config.num_steps=9", "--config.checkpoint.every_steps=2"]
    for number in range(soak.scaled(5)):
        victim = rng.randrange(len(source))
        name = source[victim]["file_name"]
        folder, poison = soak.place(f"poisoned-{number}"), {"poison": [victim]}
        printed = run("train.py", *flags, f"--workdir={folder / 'stop'}", expect=2, **poison)
        rows[0].tried += 1
        if f"At fault: {name!r} (a batch" not in printed or "Traceback" in printed:
            rows[0].lost.append(printed)
        flags_skip = [*flags, "--config.non_finite.action=skip"]
        printed = run("train.py", *flags_skip, f"--workdir={folder / 'skip'}", **poison)
        fault = {"signal": "SIGKILL", "during": "training", "at": rng.randint(1, 8)}
        run("train.py", *flags_skip, f"--workdir={folder / 'cut'}", fault=fault, expect=137, **poison)
        run("train.py", *flags_skip, f"--workdir={folder / 'cut'}", **poison)
        rows[1].tried += 1
        count = printed.count("of at most 100)")
        skipped += count
        trouble = differences(folder / "skip", folder / "cut")
        if not count or f"skipped:     {count} of 9 steps" not in printed or trouble:
            rows[1].lost.append(f"{trouble}\n{printed}")
        say(f"poisoned: {name}, {count} steps skipped, {trouble or 'the same when cut by kill -9'}")
    rows[0].figure = "each named, with step and last good checkpoint"
    rows[1].figure = f"{skipped} steps skipped and counted; cut by kill -9, the end is the same bit for bit"
    return rows


def damaged_records(soak: Soak) -> list[Row]:
    """A flipped bit or a cut in a prepared data set, in training."""
    folder, rng = soak.place("records"), random.Random(19)
    flags = [*soak.data.flags("plain"), "--config.num_steps=9", "--config.eval_every_steps=9"]
    run("train.py", *flags, f"--workdir={folder / 'whole'}")
    right = harness.arrays(folder / "whole", 9)
    rows = []
    for action in ("fail", "skip"):
        row, came = Row(f"a prepared data set with a flipped bit or cut, config.data.bad_examples={action}"), {}
        for number in range(soak.scaled(10)):
            place, workers = folder / f"{action}-{number}", rng.randrange(3)
            shutil.copytree(soak.data.folder / "prepared", place / "prepared")
            records = sorted((place / "prepared").glob("image_folder/**/*train*.array_record*"))
            kind = rng.choice(("flip in content",) * 3 + ("truncate",))  # most of such a file is padding
            harness.damage(rng.choice(records), kind, rng)
            options = [f"--config.data.data_dir={place / 'prepared'}", f"--config.data.num_workers={workers}"]
            options += [f"--config.data.bad_examples={action}", f"--workdir={place / 'run'}"]
            with Child("train.py", *flags, *options) as child:
                status = child.end()
            errors = [line for line in child.printed.splitlines() if line.startswith("error: ")]
            if status == 2 and len(errors) == 1:
                what = "stopped with one message"
            elif status == 0 and not harness.different_arrays(right, harness.arrays(place / "run", 9)):
                what = "harmless"
            elif status == 0 and action == "skip" and "left out: " in child.printed:
                what = "left out and reported"
            else:
                what = f"status {status}"
                row.lost.append(child.printed)
            row.lost += [child.printed] if "Traceback" in child.printed else []
            row.tried += 1
            came[what] = came.get(what, 0) + 1
            say(f"records, {action}: {kind}, {workers} workers: {what}; {(errors or [''])[0][:150]}")
        row.figure = ", ".join(f"{count} {what}" for what, count in sorted(came.items()))
        rows.append(row)
    return rows


def killed_workers(soak: Soak) -> list[Row]:
    """Kill -9 of an input worker at a random moment; the run stops, saved, and goes on to the same end."""
    row, rng, slowest = Row("kill -9 of an input worker at random moments"), random.Random(20), 0.0
    folder = soak.place("workers")
    flags = [*soak.data.flags("plain"), "--config.num_steps=400", "--config.eval_every_steps=400"]
    flags += ["--config.checkpoint.every_steps=50", "--config.data.num_workers=2"]
    run("train.py", *flags, f"--workdir={folder / 'whole'}")
    for number in range(soak.scaled(6)):
        workdir = folder / f"cut-{number}"
        with Child("train.py", *flags, f"--workdir={workdir}") as child:
            child.wait_for(": loss")
            time.sleep(rng.uniform(0.0, 2.0))
            worker = rng.choice(child.workers())
            os.kill(worker, signal.SIGKILL)
            moment = time.monotonic()
            status, seconds = child.end(), time.monotonic() - moment
        slowest, left = max(slowest, seconds), harness.steps(workdir)
        run("train.py", *flags, f"--workdir={workdir}")
        row.tried += 1
        trouble = [] if status == 2 and "worker" in child.printed and left else [f"status {status}\n{child.printed}"]
        trouble += differences(folder / "whole", workdir, kept=False)
        say(f"worker killed: status {status} after {seconds:.1f} s, kept {left}; {trouble or 'the same in the end'}")
        row.lost += ["; ".join(trouble)] if trouble else []
    row.figure = f"noticed, saved and ended within {slowest:.1f} s; the end is the same bit for bit"
    return [row]


# ---- elsewhere ------------------------------------------------------------------------------------------------------


def elastic_batches(soak: Soak) -> list[Row]:
    """The global batches for every number of processes and workers: indices and pixels."""
    row = Row("1, 2, 4 processes, 0 to 3 workers, from steps 0 and 5: global batches")
    for variant in ("segmentation", "classification"):
        config = soak.data.config(variant)
        for start in (0, 5):
            right = harness.global_batches(config, processes=1, workers=0, start_step=start)
            for processes, workers in ((1, 1), (1, 2), (1, 3), (2, 0), (2, 2), (4, 0)):
                found = harness.global_batches(config, processes=processes, workers=workers, start_step=start)
                row.tried += 1
                pairs = zip(right, found, strict=True)
                if any(one[name].tobytes() != other[name].tobytes() for one, other in pairs for name in one):
                    row.lost.append(f"{variant}: {processes} processes, {workers} workers from {start}")
            say(f"batches of {variant} from step {start}: {len(row.lost)} of {row.tried} differ")
    row.figure = f"{harness.BATCHES} batches each, indices, labels and pixels the same bit for bit"
    return [row]


def elastic(soak: Soak) -> list[Row]:
    """A run moved between devices, modes and workers, by SIGTERM; its arrays agree to rounding."""
    row, rng, largest = Row("moved between 1, 2, 4 devices, jit and pmap, 0 to 3 workers"), random.Random(17), 0.0
    folder = soak.place("elastic")
    flags = [*soak.data.flags("plain"), "--config.num_steps=12", "--config.eval_every_steps=12"]
    flags += ["--config.optimizer.learning_rate=0.001"]  # so that rounding stays rounding
    wide = {"float64": True}  # nothing but the weights, which are float32, rounds visibly
    run("train.py", *flags, f"--workdir={folder / 'whole'}", **wide)
    right = harness.arrays(folder / "whole", 12)
    for number in range(soak.scaled(3)):
        workdir = folder / str(number)
        for step in (3, 6, 9, None):
            devices, mode, workers = rng.choice((1, 2, 4)), rng.choice(("jit", "pmap")), rng.randrange(4)
            place = (f"--config.parallel={mode}", f"--config.data.num_workers={workers}", f"--workdir={workdir}")
            fault = {"fault": {"signal": "SIGTERM", "during": "training", "at": step}} if step else {}
            run("train.py", *flags, *place, devices=devices, **wide, expect=143 if step else 0, **fault)
            say(f"elastic: {mode} on {devices}, {workers} workers, to step {step or 12}")
        row.tried += 1
        found = harness.arrays(workdir, 12)
        worst = max((_relative(found[name], right[name]), name) for name in right if not name.startswith("training"))
        say(f"elastic: largest difference {worst[0]:.1e} of {worst[1]}")
        largest = max(largest, worst[0])
        if not worst[0] < 1e-4:  # another batch would change weights by ten steps of 0.001
            row.lost.append(f"arrays differ by {worst}")
    row.figure = f"largest difference of weights, statistics and EMA {largest:.1e} of an array's largest value"
    return [row]


def _relative(one, other) -> float:
    return float(abs(one - other).max() / max(abs(other).max(), 0.1))  # biases begin at 0


def long_run(soak: Soak) -> list[Row]:
    """3,000 steps: memory, open files, threads, time of a step, size of the logs."""
    folder, steps = soak.place("long"), 60 * soak.times
    flags = [*soak.data.flags("plain"), f"--workdir={folder / 'run'}", f"--config.num_steps={steps}"]
    flags += ["--config.log_every_steps=20", "--config.eval_every_steps=500", "--config.checkpoint.every_steps=100"]
    run("train.py", *flags, samples=str(folder / "samples"), sample_every=20)
    sizes = [json.loads(line) for line in (folder / "samples").read_text().splitlines()]
    settled = [size for size in sizes if size["step"] > steps / 5]
    growth = harness.slope(settled, "rss_mb", per=1000)
    third = len(sizes) // 3
    early, late = (_seconds_per_step(part) for part in (sizes[third // 4 : third], sizes[-third:]))
    more = {name: settled[-1][name] - settled[0][name] for name in ("open_files", "threads", "arrays", "objects")}
    written = {name: harness.size_of(folder / "run" / name) / steps for name in ("metrics.jsonl", "tensorboard")}
    row = Row(f"a run of {steps:,} steps, a checkpoint every 100, an evaluation every 500", 1)
    level = max(more["open_files"], more["threads"], more["arrays"]) <= 2 and more["objects"] < steps
    if growth > 20 or not level or late > 1.5 * early:
        row.lost.append(str(sizes))
    row.figure = (
        f"RSS {settled[0]['rss_mb']:.0f} to {settled[-1]['rss_mb']:.0f} MB, {growth:+.1f} MB per 1,000 steps; "
        f"open files {more['open_files']:+d} ({settled[-1]['open_files']}), threads {more['threads']:+d} "
        f"({settled[-1]['threads']}), arrays {more['arrays']:+d}, Python objects {more['objects']:+d} "
        f"({settled[-1]['objects']:,}); step {1000 * early:.1f} ms in the first third, {1000 * late:.1f} in the last; "
        f"bytes per step: metrics {written['metrics.jsonl']:.0f}, events {written['tensorboard']:.0f}"
    )
    return [row]


def _seconds_per_step(samples) -> float:
    """Median over the intervals between samples, so that saves and evaluations do not count."""
    rates = sorted((b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(samples))
    return rates[len(rates) // 2]


# ---- the table ------------------------------------------------------------------------------------------------------

SCENARIOS = {
    "stop-random": stop_random,
    "kill-random": kill_random,
    "stop-quickstart": stop_quickstart,
    "second-ctrl-c": second_ctrl_c,
    "two-processes": two_processes,
    "kill-saves": kill_saves,
    "kill-saves-in-training": kill_saves_in_training,
    "damage": damage,
    "damage-in-training": damage_in_training,
    "full-disk": full_disk,
    "poisoned": poisoned,
    "damaged-records": damaged_records,
    "killed-workers": killed_workers,
    "elastic-batches": elastic_batches,
    "elastic": elastic,
    "long-run": long_run,
}


def table(rows: list[Row]) -> str:
    """Markdown."""
    head = ("Fault", "Times tried", "Survived", "Lost", "Figure")
    lines = [head, ("---", "--:", "--:", "--:", "---"), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def put_between_marks(path: pathlib.Path, text: str) -> None:
    """Replaces what stands between the two marks in a file, or adds them at its end."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n".lstrip()
    before, rest = page.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> int:
    """Runs what is asked for; the status is 1 where something was lost."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, with commas")
    parser.add_argument("--times", type=int, default=DEFAULT_TIMES, help="kills during saves; the rest follows")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file that gets the table between its marks")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        (pathlib.Path(folder) / "data").mkdir()
        soak = Soak(pathlib.Path(folder), arguments.times, harness.Data(pathlib.Path(folder) / "data"))
        for name in names:
            say(f"==== {name}: {SCENARIOS[name].__doc__}")
            start = time.monotonic()
            try:
                rows += SCENARIOS[name](soak)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                say(f"LOST {error}")
                rows.append(Row(name, 1, [str(error)], "ended early"))
            say(f"==== {name}: {time.monotonic() - start:.0f} s")
    minutes = (time.monotonic() - began) / 60
    machine = f"{os.cpu_count()} CPU cores, Python {platform.python_version()}"
    text = f"{table(rows)}\n{datetime.date.today()}, {machine}, {minutes:.0f} minutes, `--times {arguments.times}`.\n"
    print(f"\n{text}")
    if arguments.output:
        put_between_marks(arguments.output, text)
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    sys.exit(main())
