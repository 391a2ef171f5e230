"""What a run left in its folder: its steps, arrays and metrics, how two runs differ, and damage to it.

Everything is read with Orbax and by hand, not through the code that is tested.
"""

import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
from harness import HERE, ROOT

WALL_CLOCK = ("images_per_second",)  # metrics that no two runs share


def steps(workdir: pathlib.Path) -> list[int]:
    """Of the checkpoints in a run's folder, by their names alone."""
    return _steps_of(names(workdir / "checkpoints"))


def arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by name."""
    import jax
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints" / f"step_{step}"
    found = {}
    for item in ("variables", "training", "ema"):
        if (folder / item).is_dir():
            reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
            tree = reader.restore(folder / item, restore_args=_as_numpy(reader.metadata(folder / item)))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def _as_numpy(metadata):
    import jax
    import orbax.checkpoint as ocp

    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of ``metrics.jsonl`` without those of the clock; all must be whole."""
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in WALL_CLOCK} for line in lines]


def scalars(workdir: pathlib.Path) -> dict[tuple[str, int], list[float]]:
    """What TensorBoard shows: a restart hides what earlier files have from its step on. A cut tail is left out."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    from flax_mnv2.data.archives.tfrecord import read_records
    from flax_mnv2.errors import DataError

    shown: dict[tuple[str, int], list[float]] = {}
    for path in sorted((workdir / "tensorboard").glob("events.*")):
        try:
            for record in read_records(path):
                event = Event.FromString(record)
                if event.session_log.status == SessionLog.START:
                    shown = {place: values for place, values in shown.items() if place[1] < event.step}
                for value in event.summary.value:
                    if value.tag.rpartition("/")[2] not in WALL_CLOCK:
                        shown.setdefault((value.tag, event.step), []).append(value.simple_value)
        except DataError:
            continue
    return shown


def differences(one: pathlib.Path, other: pathlib.Path, *, kept: bool = True) -> list[str]:
    """What two runs of the same config left differently, a line each; none where they are the same bit for bit.

    Args:
      one: folder of a run that reached its end.
      other: of another.
      kept: whether the checkpoints that are kept must be those of the same steps.
    """
    found = []
    if kept and steps(one) != steps(other):
        found.append(f"checkpoints: {steps(one)} and {steps(other)}")
    newest = [max(steps(folder), default=None) for folder in (one, other)]
    if newest[0] != newest[1] or newest[0] is None:
        found.append(f"newest checkpoint: {newest[0]} and {newest[1]}")
    else:
        found += different_arrays(arrays(one, newest[0]), arrays(other, newest[0]))
    lines = [metrics(one), metrics(other)]
    found += [f"metrics.jsonl: {a} and {b}" for a, b in zip(*lines, strict=False) if a != b][:3]
    if len(lines[0]) != len(lines[1]):
        found.append(f"metrics.jsonl: {[[(line['step'], line['split']) for line in part] for part in lines]}")
    shown = [scalars(one), scalars(other)]
    if shown[0] != shown[1]:
        places = sorted(
            place for place in shown[0].keys() | shown[1].keys() if shown[0].get(place) != shown[1].get(place)
        )
        found += [f"TensorBoard {place}: {shown[0].get(place)} and {shown[1].get(place)}" for place in places[:3]]
    return found


def different_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    """Names of arrays that are not the same bit for bit."""
    assert one, "a checkpoint without arrays"
    if one.keys() != other.keys():
        return [f"arrays: {sorted(one.keys() ^ other.keys())[:3]}"]
    return [f"array {name}" for name in one if one[name].tobytes() != other[name].tobytes()][:3]


@dataclasses.dataclass
class Kills:
    """What came of kills during saves: how many, what was wrong afterwards, and how many found a checkpoint."""

    tried: int = 0
    going_on: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)


def kill_saves(folder: pathlib.Path, *, times: int, rng: random.Random, say=lambda line: None) -> Kills:
    """Kills saver.py ``times`` at random moments; each start checks, array by array, what the last one left."""
    result = Kills()
    for _ in range(times + 1):
        last = result.tried == times
        before = _steps_of(names(folder))
        target = 3 + max(before, default=0) if last else 100_000
        command = [sys.executable, HERE / "saver.py", folder, str(target)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("from "):
                    break
            else:
                result.wrong.append("".join(lines))
                return result
            start = int(lines[-1].split()[1])
            if before and start <= max(before):  # it set aside what looked complete
                result.wrong.append("".join(lines))
            result.going_on += start > 1
            if not last:
                doomed = start + rng.randint(2, 5)  # this save, or what follows it
                for line in process.stdout:
                    if f"saving {doomed}" in line:
                        break
                time.sleep(rng.uniform(0.0, 0.2))
                process.kill()
                result.tried += 1
                say(f"kill {result.tried}: started from {start}, left {names(folder)}")
            rest = process.stdout.read()
            if process.wait(120) != (0 if last else -signal.SIGKILL):
                result.wrong.append(rest)
        finally:
            process.kill()
            process.stdout.close()
    return result


def _steps_of(names):
    return sorted(int(match[1]) for match in map(re.compile(r"step_(\d+)").fullmatch, names) if match)


def names(folder: pathlib.Path) -> list[str]:
    """Of what is in a folder."""
    return sorted(path.name for path in folder.glob("*"))


def damages(checkpoint: pathlib.Path, *, positions: int):
    """Every file of a checkpoint, relative, with each kind of damage, ``positions`` times."""
    files = sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    assert files, f"no files in {checkpoint}"
    for path in files:
        for kind in ("flip", "truncate", "empty"):
            for _ in range(positions if kind == "flip" else 1):
                yield path, kind


def damage(path: pathlib.Path, kind: str, rng: random.Random) -> None:
    """Flips a bit (``flip in content``: of a byte that is not 0), cuts the file at a random place, or empties it."""
    content = bytearray(path.read_bytes())
    if kind.startswith("flip") and content:
        places = np.flatnonzero(content) if kind == "flip in content" else range(len(content))
        content[rng.choice(places)] ^= 1 << rng.randrange(8)
    elif kind == "truncate" and content:
        del content[rng.randrange(len(content)) :]
    else:
        content.clear()
    path.write_bytes(content)


def damage_arrays(checkpoint: pathlib.Path, kind: str) -> None:
    """Turns all bits of the arrays' files (``flip``), or cuts each in half: one bit may be one that nothing reads."""
    files = list(checkpoint.glob("*/ocdbt.process_*/d/*"))
    assert files, f"no arrays in {checkpoint}"
    for path in files:
        content = path.read_bytes()
        path.write_bytes(bytes(byte ^ 0xFF for byte in content) if kind == "flip" else content[: len(content) // 2])


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    """Of all below ``folder``: arrays."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def slope(samples: list[dict], name: str, *, per: int) -> float:
    """Growth of a size per so many steps, by least squares."""
    return float(np.polyfit([size["step"] for size in samples], [size[name] for size in samples], 1)[0]) * per


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
