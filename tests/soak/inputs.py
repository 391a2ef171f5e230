"""Losses that are NaN, damaged records, killed input workers."""

import os
import random
import shutil
import signal
import time

import remains
from harness import Child, run
from remains import differences
from rows import Row, Soak, say


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
    rows[0].measured = "each named, with step and last good checkpoint"
    rows[1].measured = f"{skipped} steps skipped and counted; cut by kill -9, the end is the same bit for bit"
    return rows


def damaged_records(soak: Soak) -> list[Row]:
    """A flipped bit or a cut in a prepared data set, in training."""
    folder, rng = soak.place("records"), random.Random(19)
    flags = [*soak.data.flags("plain"), "--config.num_steps=9", "--config.eval_every_steps=9"]
    run("train.py", *flags, f"--workdir={folder / 'whole'}")
    right = remains.arrays(folder / "whole", 9)
    rows = []
    for action in ("fail", "skip"):
        row, came = Row(f"a prepared data set with a flipped bit or cut, config.data.bad_examples={action}"), {}
        for number in range(soak.scaled(10)):
            place, workers = folder / f"{action}-{number}", rng.randrange(3)
            shutil.copytree(soak.data.folder / "prepared", place / "prepared")
            records = sorted((place / "prepared").glob("image_folder/**/*train*.array_record*"))
            kind = rng.choice(("flip in content",) * 3 + ("truncate",))  # most of such a file is padding
            remains.damage(rng.choice(records), kind, rng)
            options = [f"--config.data.data_dir={place / 'prepared'}", f"--config.data.num_workers={workers}"]
            options += [f"--config.data.bad_examples={action}", f"--workdir={place / 'run'}"]
            with Child("train.py", *flags, *options) as child:
                status = child.end()
            errors = [line for line in child.printed.splitlines() if line.startswith("error: ")]
            if status == 2 and len(errors) == 1:
                what = "stopped with one message"
            elif status == 0 and not remains.different_arrays(right, remains.arrays(place / "run", 9)):
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
        row.measured = ", ".join(f"{count} {what}" for what, count in sorted(came.items()))
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
        slowest, left = max(slowest, seconds), remains.steps(workdir)
        run("train.py", *flags, f"--workdir={workdir}")
        row.tried += 1
        trouble = [] if status == 2 and "worker" in child.printed and left else [f"status {status}\n{child.printed}"]
        trouble += differences(folder / "whole", workdir, kept=False)
        say(f"worker killed: status {status} after {seconds:.1f} s, kept {left}; {trouble or 'the same in the end'}")
        row.lost += ["; ".join(trouble)] if trouble else []
    row.measured = f"noticed, saved and ended within {slowest:.1f} s; the end is the same bit for bit"
    return [row]
