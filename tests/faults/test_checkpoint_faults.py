"""Saves that are cut, checkpoints that are damaged, disks that are full: never a wrong state, never a lost one."""

import random
import resource
import shutil

import harness
import pytest
import remains

from flax_mnv2 import CheckpointError
from flax_mnv2.checkpoint.run import Checkpoints

SHORT = {"num_steps": 9, "eval_every_steps": 9, "checkpoint__every_steps": 3}


@pytest.fixture(scope="module")
def whole(uncut):
    """A run with checkpoints at 6 and 9 that nothing happened to."""
    workdir = uncut("plain", **SHORT)
    assert remains.steps(workdir) == [6, 9]
    return workdir


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def test_kill_9_during_saves(tmp_path):
    rng = random.Random(0)
    result = remains.kill_saves(tmp_path / "checkpoints", times=2, rng=rng)
    assert result.tried == 2
    assert result.wrong == []
    assert result.going_on == 2  # all but the first


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_damage_to_any_file_is_found_or_harmless(whole, tmp_path):
    rng, checkpoint = random.Random(1), whole / "checkpoints" / "step_9"
    largest = remains.largest_file(checkpoint).relative_to(checkpoint)  # arrays, and bytes that carry nothing
    certain = [(largest, "empty"), *(("about/metadata", kind) for kind in ("truncate", "empty"))]
    cases = rng.sample(list(remains.damages(checkpoint, positions=1)), 6)  # soak.py has them all
    good = remains.arrays(whole, 9)
    for number, (path, kind) in enumerate([*certain, *cases]):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(whole / "checkpoints", folder)
        remains.damage(folder / "step_9" / path, kind, rng)
        with Checkpoints(folder) as checkpoints:
            step = checkpoints.newest_whole_step()
        if step == 9:
            assert number >= len(certain)
            assert remains.different_arrays(good, remains.arrays(folder.parent, 9)) == [], (path, kind)
        else:
            assert step == 6, (path, kind)
            assert remains.names(folder) == ["step_6", "step_9.damaged"]


@pytest.mark.parametrize("kind", ["flip", "truncate"])
def test_a_run_goes_on_from_the_one_before_a_damaged_checkpoint(tiny, whole, run, capfd, kind):
    remains.damage_arrays(run / "checkpoints" / "step_9", kind)
    config = tiny("plain", **SHORT)
    with pytest.raises(CheckpointError, match=r"checkpoints/step_9.* damaged"):
        harness.train_here(config, run, strict=True)
    assert remains.steps(run) == [6, 9]
    assert harness.train_here(config, run) == 0
    printed = capfd.readouterr().out
    assert "9.damaged" in printed
    assert "going on from step 6" in printed
    assert remains.differences(whole, run) == []


def test_the_script_stops_at_a_damaged_checkpoint_with_strict(data, run):
    remains.damage_arrays(run / "checkpoints" / "step_9", "truncate")
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in SHORT.items()]
    printed = harness.run("train.py", *data.flags("plain"), *flags, f"--workdir={run}", "--strict", expect=2)
    [message] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert f"{run / 'checkpoints' / 'step_9'}" in message
    assert "damaged" in message
    assert "Traceback" not in printed


# ---- a full disk, a lost folder -------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    """From the second save to the third no file may grow beyond a few kilobytes, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    saves, original = [], Checkpoints.save

    def save(self, *args):
        if len(saves) == 2:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        saves.append(len(saves))
        if len(saves) == 2:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        original(self, *args)

    monkeypatch.setattr(Checkpoints, "save", save)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_the_run_and_the_older_checkpoint_stays(tiny, whole, tmp_path, full_disk, capfd):
    config = tiny("plain", **SHORT)
    with pytest.raises(CheckpointError, match="Could not save the checkpoint of step 6") as caught:
        harness.train_here(config, tmp_path)
    assert "Check free space and permissions. Complete checkpoints there: [3]" in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err  # the message is all that there is
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert remains.steps(tmp_path) == [3]
    assert harness.train_here(config, tmp_path) == 0
    assert remains.differences(whole, tmp_path) == []


def test_a_run_goes_on_past_a_full_disk_and_saves_once_there_is_room(tiny, whole, tmp_path, full_disk, capfd):
    config = tiny("plain", **SHORT, checkpoint__on_error="continue")
    assert harness.train_here(config, tmp_path) == 0
    assert remains.steps(tmp_path) == [3, 9]
    assert remains.differences(whole, tmp_path, kept=False) == []
    printed = capfd.readouterr().out
    assert "warning: Could not save the checkpoint of step 6" in printed
    assert printed.rindex("Could not save") > printed.index("step 9/9"), "not reported at the end"


@pytest.mark.parametrize("action", ["stop", "continue"])
def test_the_folder_of_the_checkpoints_is_lost_for_a_while(tiny, tmp_path, monkeypatch, capfd, action):
    """Root may write anywhere, so a file stands in the folder's place."""
    config = tiny("plain", **SHORT, checkpoint__on_error=action)
    folder, saves, original = tmp_path / "checkpoints", [], Checkpoints.save

    def save(self, *args):
        self.wait()
        saves.append(len(saves))
        if len(saves) == 2:
            folder.rename(tmp_path / "elsewhere")
            folder.write_text("")
        elif len(saves) == 3:
            folder.unlink()
            (tmp_path / "elsewhere").rename(folder)
        original(self, *args)

    monkeypatch.setattr(Checkpoints, "save", save)
    if action == "stop":
        with pytest.raises(CheckpointError, match="Could not save the checkpoint of step 6"):
            harness.train_here(config, tmp_path)
        assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["step_3"]
    else:
        assert harness.train_here(config, tmp_path) == 0
        assert remains.steps(tmp_path) == [3, 9]
        assert "warning: Could not save the checkpoint of step 6" in capfd.readouterr().out


# ---- what is not ours -----------------------------------------------------------------------------------------------


def test_files_of_others_in_the_workdir_stay(tiny, tmp_path):
    theirs = [
        "notes.txt",
        "checkpoints/notes.txt",
        "checkpoints/7/photo.jpg",
        "checkpoints/1/photo.jpg",
        "checkpoints/step_1/photo.jpg",
        "checkpoints/foo.orbax-checkpoint-tmp-1/photo.jpg",
        "checkpoints/5.orbax-checkpoint-tmp/photo.jpg",
        "checkpoints/3.damaged/photo.jpg",
        "tensorboard/photo.jpg",
    ]
    for name in theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    config = tiny("plain", **SHORT)
    fault = {"signal": "SIGTERM", "during": "training", "at": 4}
    assert harness.train_here(config, tmp_path, fault=fault) == 143
    assert harness.train_here(config, tmp_path) == 0
    for name in theirs:
        assert (tmp_path / name).read_text() == name
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [6, 9]
