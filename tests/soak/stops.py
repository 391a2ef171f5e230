"""Runs that are stopped or killed and go on: signals at random moments, Ctrl-C twice, one of two processes."""

import itertools
import json
import random
import signal
import time

import harness
import remains
from harness import Child, run
from remains import differences
from rows import STOP_WITHIN, Row, Soak, say

CHAIN_LENGTH = 6  # cuts of one run, at most


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
                f"{variant}: {number.name}, status {status} after {seconds:.1f} s, kept {remains.steps(folder / 'cut')}"
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
    row.measured = f"slowest stop {slowest:.1f} s; arrays, metrics, events, report the same bit for bit"
    return [row]


def kill_random(soak: Soak) -> list[Row]:
    """Kill -9 at random moments of a run, again and again."""
    row, rng = Row("kill -9 at random moments, resumed, compared with an uncut run"), random.Random(11)
    for variant, devices, options in itertools.islice(itertools.cycle(VARIANTS), soak.scaled(4)):
        _cut_until_done(soak, row, variant, (signal.SIGKILL,), rng, *options, devices=devices)
    row.measured = "arrays, metrics, events, report the same bit for bit"
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
            saved = bool(remains.steps(workdir))
            if status != 128 + number or seconds > STOP_WITHIN or saved == (what == "compiling"):
                row.lost.append(child.printed)
        row.measured = "slowest: " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in slowest.items())
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
        broken = [step for step in remains.steps(workdir) if remains.arrays(workdir, step)["training['step']"] != step]
        say(f"twice: status {status} after {seconds:.1f} s, kept {remains.steps(workdir)}")
        if status != 130 or broken or not remains.steps(workdir):
            row.lost.append(child.printed)
    row.measured = f"slowest end {slowest:.1f} s; checkpoints whole"
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
        kept = remains.steps(folder / str(number))
        with harness.two_processes(*flags, workdir) as on:
            statuses += [process.end() for process in on]
        row.tried += 1
        trouble = [] if statuses == [143, 143, 0, 0] else [f"{statuses} {two[0].printed} {two[1].printed}"]
        trouble = trouble or differences(folder / "whole", folder / str(number), kept=False)
        say(f"two processes, {during}: process {told} told, kept {kept}; {trouble or 'the same in the end'}")
        row.lost += [str(trouble)] if trouble else []
    row.measured = f"both ended within {slowest:.1f} s; the end is the same bit for bit"
    return [row]
