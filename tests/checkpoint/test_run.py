"""Checkpoints by themselves: what is kept, what is noticed, what is never touched."""

import functools
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from flax_mnv2 import CheckpointError
from flax_mnv2.checkpoint.run import SCORE, Checkpoints, _meet
from flax_mnv2.training.state import TrainState

ABOUT = {"config": {"seed": 0}, "model": {"depth_multiplier": 1.0}}
OPTIMIZER = optax.chain(optax.trace(0.9), optax.scale(-0.1))


@functools.cache
def _state(step):
    rng = np.random.default_rng(step)
    params = {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 8, 16)), jnp.float32), "bias": jnp.full(16, step)}}
    variables = {"params": params, "batch_stats": {"mean": jnp.asarray(rng.normal(size=16), jnp.float32)}}
    return TrainState.create(variables, OPTIMIZER, ema=True).replace(step=jnp.asarray(step, jnp.int32))


def _save(folder, steps, scores=(), **settings):
    with Checkpoints(folder, **settings) as checkpoints:
        for step in steps:
            checkpoints.save(step, _items(step), ABOUT)
            if step in scores:
                checkpoints.add_score(step, {SCORE: scores[step]})
    return checkpoints


def _items(step):
    return _state(step).to_items()


def _restore(checkpoints, step, like=0):
    return TrainState.from_items(checkpoints.restore(step, _items(like)))


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _assert_is(state, step):
    jax.tree.map(np.testing.assert_array_equal, state, _state(step))


def test_the_newest_and_the_best_are_kept_and_the_score_may_come_later(tmp_path):
    _save(tmp_path, [1, 2, 3, 4], {1: 0.1, 2: 0.9, 3: float("nan")}, keep_last=1, keep_best=1)
    with Checkpoints(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        assert checkpoints.steps() == [2, 4]
        assert checkpoints.best_step() == 2
        checkpoints.add_score(4, {SCORE: 0.95})  # of an evaluation that was cut and made up for
        assert checkpoints.steps() == [4]
        assert checkpoints.best_step() == 4


def test_a_score_that_was_changed_counts_for_nothing(tmp_path):
    checkpoints = _save(tmp_path, [1, 2], {1: 0.1, 2: 0.5}, keep_last=2)
    note = tmp_path / "step_1" / "metrics" / "metrics"
    note.write_text(note.read_text().replace("0.1", "0.9"))
    assert checkpoints.best_step() == 2
    note.write_text('{"score": 0.9}')  # of a version that wrote no checksum
    assert checkpoints.best_step() == 1


def test_without_scores_the_newest_is_the_best(tmp_path):
    assert _save(tmp_path, [3, 10], keep_last=2).best_step() == 10


def test_a_state_comes_back_as_it_was(tmp_path):
    with _save(tmp_path, [7]) as checkpoints:
        assert checkpoints.newest_whole_step() == 7
        _assert_is(_restore(checkpoints, 7), 7)
        assert checkpoints.about(7)["config"] == ABOUT["config"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_whatever_file_is_damaged_no_wrong_state_is_read(tmp_path, damage, capsys):
    whole = tmp_path / "whole"
    _save(whole, [1, 2], keep_last=2)
    rng = np.random.default_rng(0)
    noticed = []
    for number, file in enumerate(_files(whole / "step_2")):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        target = folder / file.relative_to(whole)
        if damage == "remove":
            target.unlink()
        elif file.stat().st_size:
            data = bytearray(target.read_bytes())
            place = int(rng.integers(len(data)))
            data[place] ^= 1 << int(rng.integers(8))
            target.write_bytes(data if damage == "flip" else data[:place])
        with Checkpoints(folder, keep_last=2) as checkpoints:
            step = checkpoints.newest_whole_step()
            if step == 2:
                _assert_is(_restore(checkpoints, step), step)
            else:
                assert step == 1
                noticed.append(file.name)
                assert checkpoints.steps() == [1]
                assert (folder / "step_2.damaged").is_dir()
                assert f"{folder / 'step_2'}" in capsys.readouterr().out
    # Files that only Orbax's bookkeeping uses may be anything; those with tensors, and the note, may not.
    assert "metadata" in noticed
    assert len(noticed) >= {"flip": 8, "truncate": 15, "remove": 12}[damage]


@pytest.mark.parametrize("item", ["variables", "training", "ema"])
def test_an_array_that_decodes_to_other_numbers_is_named(tmp_path, item):
    """What no decoder can notice: another whole checkpoint's arrays in place of these."""
    _save(tmp_path, [1, 2], keep_last=2)
    shutil.rmtree(tmp_path / "step_2" / item)
    shutil.copytree(tmp_path / "step_1" / item, tmp_path / "step_2" / item)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            CheckpointError, match=rf"step_2/{item} is damaged: \d+ of \d+ arrays differ .*(float|int)32\["
        ):
            checkpoints.newest_whole_step(strict=True)
        assert checkpoints.newest_whole_step() == 1


def test_when_none_is_whole_the_run_does_not_begin_anew(tmp_path):
    _save(tmp_path, [1, 2], keep_last=2)
    for step in (1, 2):
        (tmp_path / f"step_{step}" / "about" / "metadata").write_bytes(b"{")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=r"all of .* are damaged and kept"):
        checkpoints.newest_whole_step()
    assert _names(tmp_path) == ["step_1.damaged", "step_2.damaged"]


def test_a_checkpoint_set_aside_twice_keeps_both(tmp_path):
    _save(tmp_path, [1, 2], keep_last=2)
    for _ in range(2):
        (tmp_path / "step_2" / "about" / "metadata").write_bytes(b"{")
        with Checkpoints(tmp_path, keep_last=2) as checkpoints:
            assert checkpoints.newest_whole_step() == 1
            checkpoints.save(2, _items(2), ABOUT)
    assert _names(tmp_path) == ["step_1", "step_2", "step_2.damaged", "step_2.damaged.2"]


def test_folders_that_no_run_has_written_are_no_checkpoints_and_stay(tmp_path):
    """Whatever their names, whatever is saved and removed beside them."""
    theirs = ["1", "999999", "step_1", "step_999999", ".removing", ".removing/step_1", "notes"]
    theirs += ["5.orbax-checkpoint-tmp", "step_5.orbax-checkpoint-tmp", "3.removing", "old.orbax-checkpoint-tmp-1"]
    for name in theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_bytes(b"dear")
    (tmp_path / "step_12").symlink_to(tmp_path / "notes")
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.newest_whole_step() is None
        for step in (2, 3):
            checkpoints.save(step, _items(step), ABOUT)
    assert checkpoints.steps() == [3]
    for name in (*theirs, "step_12"):
        assert (tmp_path / name / "photo.jpg").read_bytes() == b"dear"


def test_leftovers_of_saves_and_removals_that_were_cut_go(tmp_path):
    _save(tmp_path, [1])
    for name in ("step_2.orbax-checkpoint-tmp", ".removing/step_0", "0.removing"):
        shutil.copytree(tmp_path / "step_1", tmp_path / name)
    for name in ("3.orbax-checkpoint-tmp", ".removing/step_3"):
        (tmp_path / name).mkdir()
    assert Checkpoints(tmp_path, read_only=True).steps() == [1]
    assert len(_names(tmp_path)) == 5  # reading changes nothing
    assert Checkpoints(tmp_path).steps() == [1]
    assert _names(tmp_path) == ["step_1"]


def test_checkpoints_of_earlier_versions_are_read_and_get_the_new_name(tmp_path, capsys):
    """They were named by their number; what somebody else named so stays."""
    _save(tmp_path, [1, 2, 3], {1: 0.9}, keep_last=3)
    for step in (1, 2):
        (tmp_path / f"step_{step}").rename(tmp_path / str(step))
    (tmp_path / "7").mkdir()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        assert (checkpoints.best_step(), checkpoints.path_of(1)) == (1, tmp_path / "1")
        _assert_is(_restore(checkpoints, 2), 2)
    assert _names(tmp_path) == ["1", "2", "7", "step_3"]
    capsys.readouterr()
    with Checkpoints(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        assert capsys.readouterr().out == f"checkpoints of an earlier version in {tmp_path}: [1, 2] renamed to step_N\n"
        assert checkpoints.newest_whole_step() == 3
        checkpoints.save(4, _items(4), ABOUT)
    assert _names(tmp_path) == ["7", "step_1", "step_4"]


def test_a_save_that_fails_stops_the_run_or_is_noted_and_older_ones_stay(tmp_path, capsys):
    _save(tmp_path, [1], keep_last=2)
    (tmp_path / "step_2").mkdir()  # somebody's folder, in the way; a failure that root meets, too
    with pytest.raises(CheckpointError, match=r"Could not save the checkpoint of step 2 .*there: \[1\]"):
        _save(tmp_path, [2], keep_last=2)
    with Checkpoints(tmp_path, keep_last=2, tolerant=True) as checkpoints:
        checkpoints.save(2, _items(2), ABOUT)
        checkpoints.save(3, _items(3), ABOUT)
    assert checkpoints.steps() == [1, 3]
    assert len(checkpoints.failures) == 1
    assert "warning: Could not save the checkpoint of step 2" in capsys.readouterr().out
    with checkpoints:
        for step in (1, 3):
            checkpoints.verify(step)


def test_a_save_that_fails_in_the_background_is_found_by_the_next_call(tmp_path, capfd):
    checkpoints = Checkpoints(tmp_path, keep_last=1, tolerant=True)
    checkpoints.save(1, _items(1), ABOUT)
    checkpoints.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))  # as on a disk without room
        checkpoints.save(2, _items(2), ABOUT)
        assert checkpoints.failures == []
        checkpoints.wait()
        assert capfd.readouterr().err == ""  # nothing but our one message
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "step 2 in" in checkpoints.failures[0]
    assert re.search("Error writing|File too large", checkpoints.failures[0])
    assert checkpoints.steps() == [1]
    checkpoints.save(3, _items(3), ABOUT)
    checkpoints.wait()
    assert _names(tmp_path) == ["step_3"]  # what the failed save was to replace goes with the next


def test_a_checkpoint_of_a_version_without_sums_is_read(tmp_path):
    _save(tmp_path, [1])
    (tmp_path / "step_1" / "about" / "metadata").write_text('{"config": {}, "model": {}}')
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_whole_step() == 1


def test_a_process_whose_save_failed_waits_for_no_other(monkeypatch):
    """Orbax would wait for the others with the error in its hand, until the timeout."""
    met = []
    monkeypatch.setattr(ocp.multihost, "get_barrier_sync_fn", lambda: lambda **barrier: met.append(barrier))

    def finish(reason):  # as Orbax does it
        try:
            if reason:
                raise OSError(28, reason)
        finally:
            _meet(key=f"ended: {reason}", timeout_ms=1)

    finish(None)
    with pytest.raises(OSError, match="No space left"):
        finish("No space left on device")
    assert met == [{"key": "ended: None", "timeout_ms": 1}]


def test_saving_leaves_the_count_of_the_loops_questions_alone(tmp_path, monkeypatch):
    """JAX stops all hosts at the same number of questions; Orbax would ask with its own numbers."""
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda _: pytest.fail("asked"))
    _save(tmp_path, [1, 2])


def test_what_is_noted_of_eleven_classes_is_whole(tmp_path):
    """Keys that are numbers come back as strings, and sort otherwise from 10 on."""
    labels = {index: f"class {index}" for index in range(11)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _items(1), {**ABOUT, "model": {"id2label": labels}})
    about = Checkpoints(tmp_path, read_only=True).about(1)
    assert about["model"]["id2label"]["10"] == "class 10"
