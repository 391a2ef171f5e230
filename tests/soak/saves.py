"""Checkpoints cut by kill -9, damaged afterwards, or without room on the disk."""

import random
import shutil
import signal
import subprocess
import time

import remains
from harness import Child, run
from remains import differences
from rows import Row, Soak, say


def kill_saves(soak: Soak) -> list[Row]:
    """Kill -9 at random moments while states are saved one after another."""
    result = remains.kill_saves(soak.place("saves"), times=soak.times, rng=random.Random(13), say=say)
    for text in result.wrong:
        say(f"LOST {text}")
    measured = f"{result.going_on} of {result.tried + 1} starts found a checkpoint, all of them right bit for bit"
    return [Row("kill -9 during saves (saver.py)", result.tried, result.wrong, measured)]


def kill_saves_in_training(soak: Soak) -> list[Row]:
    """Kill -9 of a run that saves at every step; what is left is compared with a run that keeps every step."""
    row, rng = Row("kill -9 during saves (train.py, a checkpoint every step)"), random.Random(14)
    folder = soak.place("every-step")
    flags = [*soak.data.flags("plain"), "--config.num_steps=40", "--config.eval_every_steps=100"]
    flags += ["--config.checkpoint.every_steps=1"]
    run("train.py", *flags, f"--workdir={folder / 'all'}", "--config.checkpoint.keep_last=1000")
    right = {step: remains.arrays(folder / "all", step) for step in remains.steps(folder / "all")}
    compared = 0
    for number in range(soak.scaled(10)):
        workdir = folder / f"{number // 4}"  # the fifth begins anew
        with Child("train.py", *flags, f"--workdir={workdir}") as child:
            child.wait_for(": loss", timeout=120)
            time.sleep(rng.uniform(0.2, 4.0))  # some saves, and into the next
            child.send(signal.SIGKILL)
            child.end()
        row.tried += 1
        found = remains.steps(workdir)
        wrong = [step for step in found if remains.different_arrays(right[step], remains.arrays(workdir, step))]
        compared += len(found)
        say(f"every step: left {remains.names(workdir / 'checkpoints')}")
        if wrong or "Error" in child.printed or "error" in child.printed:
            row.lost.append(f"{wrong}: {child.printed}")
    row.measured = f"{compared} checkpoints compared bit for bit"
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
    rng, good, source = random.Random(15), remains.arrays(folder / "whole", 8), folder / "whole" / "checkpoints"
    unnoticed = dict.fromkeys(rows, 0)
    for path, kind in remains.damages(source / "step_8", positions=soak.scaled(5)):
        shutil.rmtree(folder / "run", ignore_errors=True)
        shutil.copytree(source, folder / "run" / "checkpoints")
        remains.damage(folder / "run" / "checkpoints" / "step_8" / path, kind, rng)
        rows[kind].tried += 1
        try:
            with Checkpoints(folder / "run" / "checkpoints") as checkpoints:
                step = checkpoints.newest_whole_step()
            right = step == 4 or not remains.different_arrays(good, remains.arrays(folder / "run", 8))
        except Exception as error:  # whatever it is, it is no way to treat a run
            step, right = None, False
            say(f"{type(error).__name__}: {error}")
        unnoticed[kind] += step == 8
        if not right:
            rows[kind].lost.append(f"{kind} {path}: step {step}")
            say(f"LOST {kind} {path}: step {step}")
    for kind, row in rows.items():
        row.measured = (
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
        remains.damage_arrays(folder / "run" / "checkpoints" / "step_8", kind)
        strict = run("train.py", *flags, f"--workdir={folder / 'run'}", "--strict", expect=2)
        printed = run("train.py", *flags, f"--workdir={folder / 'run'}")
        row.tried += 1
        named = all("checkpoints/step_8" in text and "damaged" in text for text in (strict, printed))
        if not named or differences(folder / "whole", folder / "run"):
            row.lost.append(printed)
        say(f"damaged ({kind}): {'named, and gone on from 4' if named else 'LOST'}")
    row.measured = "--strict stops with status 2; else the end is the same bit for bit"
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
                row.measured = "not tried: no permission to mount a small disk"
                break
            try:
                _fill_and_free(row, flags, whole, disk, action)
            finally:
                subprocess.run(["umount", disk], check=True)
        row.measured = row.measured or "older checkpoints whole; with room again the end is the same bit for bit"
        rows.append(row)
    return rows


def _fill_and_free(row, flags, whole, disk, action) -> None:
    ballast, workdir = disk / "ballast", disk / "run"
    flags = [*flags, f"--workdir={workdir}", f"--config.checkpoint.on_error={action}"]
    with Child("train.py", *flags) as child:
        while child.running and not remains.steps(workdir):
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
    left = remains.steps(workdir)
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
