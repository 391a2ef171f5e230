"""Losses, gradients and weights that become NaN or infinite: runs with a poisoned example stop or skip, and name it."""

import types

import child
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from child import NO_CLASS
from harness import compiling_once

from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.data.loader.order import batch_positions
from flax_mnv2.tasks.classification.task import ClassificationTask
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.tasks.segmentation.task import SegmentationTask
from flax_mnv2.training.faults.nan_search import MAX_NAMES, MAX_SEARCHES, NanSearch, find_bad_rows
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.logging.training_log import NotFiniteError
from flax_mnv2.training.loop import train
from flax_mnv2.training.optimizer import configured_optimizer
from flax_mnv2.training.parallel import make_parallel
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.step import configured_train_step

TASKS = {"segmentation": SegmentationTask, "classification": ClassificationTask}
MARK = 7  # all pixels of a marked image have this value


@pytest.fixture
def poison(monkeypatch):
    """(task, positions, what) → from now on these examples of the training split are spoilt."""

    def arrange(task, positions, **spoil):
        child.spoil(TASKS[task], positions, spoil, monkeypatch.setattr)

    return arrange


def _positions(config, batches):
    """The examples of the first batches of a run, by what the pipeline itself puts into them."""
    dataset = get_task(config.task).load_dataset(config.data)
    with get_task(config.task).for_training(config, dataset.labels).train_batches(dataset, start_step=0) as iterator:
        return [next(iterator)["index"].tolist() for _ in range(batches)]


def _only_in(indices, *steps):
    """An example of the batch of each of these steps that is in no other batch; steps count from 1."""
    return [next(one for one in indices[step - 1] if sum(one in batch for batch in indices) == 1) for step in steps]


def _names(config, positions):
    source = get_task(config.task).load_dataset(config.data).source(config.data.train_split)
    return [source[position]["image_id" if config.task == "segmentation" else "file_name"] for position in positions]


def _parallel(mode="jit", devices=1):
    return make_parallel(mode, jax.devices()[:devices])


def _without_rates(lines):
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def _assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


@pytest.fixture
def config(tiny):
    """Dropout and a moving average are on."""
    return tiny("segmentation", num_steps=8, log_every_steps=2, eval_every_steps=8, checkpoint__every_steps=3)


@pytest.fixture
def plain(tiny):
    """A classifier with both, which compiles sooner; eight of its batches are less than an epoch."""
    return tiny("plain", batch_size=4, num_steps=8, log_every_steps=2, eval_every_steps=8, checkpoint__every_steps=3)


# ---- runs ----------------------------------------------------------------------------------------------------------


def test_a_run_stops_and_names_step_example_batch_and_checkpoint(plain, tmp_path, poison):
    indices = _positions(plain, 8)
    (victim,) = _only_in(indices, 5)
    poison("classification", [victim], label=NO_CLASS)
    with pytest.raises(NotFiniteError) as caught:
        train(plain, tmp_path, parallel=compiling_once(plain))  # labels change, not what a step computes
    message, names = str(caught.value), _names(plain, indices[4])
    assert "The loss became nan at step 5" in message
    assert f"At fault: {_names(plain, [victim])[0]!r} (a batch of nothing else is not finite either)." in message
    assert f"The batch of step 5: {', '.join(map(repr, names))}." in message
    assert f"The last good checkpoint is {tmp_path / 'checkpoints' / 'step_3'}." in message
    assert "--config.non_finite.action=skip" in message
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps() == [3]


@pytest.fixture
def steep(monkeypatch):
    """The gradient is infinite where an image is marked, and the loss is not."""
    original = SegmentationTask.loss_sums

    def loss_sums(self, variables, batch, key, **more):
        loss, rest = original(self, variables, batch, key, **more)
        weight = jax.tree.leaves(variables["params"])[0].sum()
        marked = jnp.all(batch["image"] == MARK, axis=(1, 2, 3))
        root = jnp.sqrt(jnp.where(marked, weight - jax.lax.stop_gradient(weight), 1.0))  # 0 or 1, rising at once from 0
        return loss + jnp.sum(jnp.where(marked, root, 0.0)), rest

    monkeypatch.setattr(SegmentationTask, "loss_sums", loss_sums)


def test_gradients_alone_are_enough(config, tmp_path, poison, steep, capsys):
    config.num_steps = config.eval_every_steps = 3
    config.log_every_steps = 1
    config.non_finite.action = "skip"
    (victim,) = _only_in(_positions(config, 3), 2)
    poison("segmentation", [victim], image=MARK)
    state = train(config, tmp_path, parallel=_parallel())
    printed = capsys.readouterr().out
    assert "step 2: skipped (1 of at most 100). The gradient norm became inf at step 2 (loss " in printed
    assert f"At fault: {_names(config, [victim])[0]!r} (a batch" in printed
    assert printed.count("At fault") == 1
    assert "skipped:     1 of 3 steps" in printed
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    lines = [line for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert ["loss" in line for line in lines] == [True, False, True]
    assert [line.get("skipped_steps") for line in lines] == [None, 1, 1]


class _Run:
    """A run at its beginning, step by step, and what can be asked about it."""

    def __init__(self, config, parallel):
        self.parallel, self.dataset = parallel, get_task(config.task).load_dataset(config.data)
        self.task = get_task(config.task).for_training(config, self.dataset.labels, axis_name=parallel.axis_name)
        schedule, rule = configured_optimizer(config)
        self.step = parallel.compile_train_step(configured_train_step(config, self.task, schedule, rule, parallel))
        create = jax.jit(lambda variables: TrainState.create(variables, rule, ema=True))
        self.state = parallel.put_state(create(self.task.init_variables(config.seed)))
        self.config, self.train_step = config, self.step
        self.search = NanSearch(self, lambda: self.state)

    def train(self, batch):
        fields = {name: batch[name] for name in self.task.batch_fields}
        self.state, metrics = self.step(self.state, self.parallel.put_batch(fields))
        return jax.tree.map(float, metrics)


def _by_hand(config, parallel, *, leave_out):
    """The final state of a run that never sees the batches of some steps, though it counts them, and its losses."""
    run, losses = _Run(config, parallel), {}
    with run.task.train_batches(run.dataset, start_step=0) as batches:
        for number in range(1, config.num_steps + 1):
            batch = next(batches)
            if number not in leave_out:
                losses[number] = run.train(batch)["loss"]
                continue
            host = jax.device_get(run.state)
            opt_state = optax.tree.set(host.opt_state, count=optax.tree.get(host.opt_state, "count") + 1)
            run.state = parallel.put_state(host.replace(step=host.step + 1, opt_state=opt_state))
    return run.state, losses


def test_skipping_is_leaving_the_batch_out_and_its_count_outlives_the_run(plain, tmp_path, poison, capsys):
    plain.non_finite.action = "skip"
    one = compiling_once(plain)  # labels and limits change, not what a step computes
    expected, losses = _by_hand(plain, one, leave_out=(2, 7))  # before anything is poisoned
    indices = _positions(plain, 8)
    victims = _only_in(indices, 2, 7)
    names = _names(plain, victims)
    poison("classification", victims, label=NO_CLASS)

    # One skip is allowed: the second stops the run, and again when it goes on, since the first is remembered.
    plain.non_finite.max_skips = 1
    for attempt in range(2):
        with pytest.raises(NotFiniteError, match=r"at step 7 .*max_skips = 1 is used up") as caught:
            train(plain, tmp_path, parallel=one)
        assert f"At fault: {names[1]!r} (a batch" in str(caught.value)
        assert f"The last good checkpoint is {tmp_path / 'checkpoints' / 'step_6'}." in str(caught.value)
        lines = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
        assert len(lines) == 1 - attempt
        if lines:
            assert lines[0].startswith("step 2: skipped (1 of at most 1). The loss became nan at step 2 ")
            assert f"At fault: {names[0]!r} (a batch" in lines[0]
            assert f"The batch of step 2: {_names(plain, indices[1])[0]!r}, " in lines[0]

    plain.non_finite.max_skips = 2
    state = train(plain, tmp_path, parallel=one)
    printed = capsys.readouterr().out
    assert "step 7: skipped (2 of at most 2)" in printed
    assert "skipped:     2 of 8 steps" in printed
    _assert_same(state, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    lines = {line["step"]: line for line in read_metrics(tmp_path) if line["split"] == "train"}
    assert {step: line.get("skipped_steps") for step, line in lines.items()} == {1: None, 2: 1, 4: 1, 6: 1, 8: 2}
    assert "loss" not in lines[2]
    assert lines[6]["loss"] == pytest.approx((losses[5] + losses[6]) / 2)
    assert lines[8]["loss"] == pytest.approx(losses[8])


def test_every_way_skips_the_same_and_finds_the_same_without_compiling_again(plain, poison, caplog):
    """Compared after one update: rounding grows."""
    plain.batch_size = 8
    (victim,) = _only_in(_positions(plain, 2), 1)
    poison("classification", [victim], label=NO_CLASS)
    states = []
    for parallel in (make_parallel("jit", jax.devices()[:4], shard_optimizer=True), _parallel("pmap", 4)):
        run = _Run(plain, parallel)
        start = jax.device_get(run.state)
        with run.task.train_batches(run.dataset, start_step=0) as batches, jax.log_compiles():
            caplog.clear()
            assert run.train(next(batches))["skipped"] == 1
            assert "Compiling" in caplog.text
            before = jax.device_get(run.state)
            _assert_same(before.variables, start.variables)
            caplog.clear()
            assert f"At fault: {_names(plain, [victim])[0]!r} (a batch" in run.search.explain(1)
            assert "Compiling" not in caplog.text
            _assert_same(run.state, before)
            assert run.train(next(batches))["skipped"] == 0
        assert not np.array_equal(*(jax.tree.leaves(state.params)[0] for state in (start, run.state)))
        states.append(jax.device_get(run.state))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_an_example_that_is_mixed_and_repeated_is_found(tiny, poison):
    config = tiny("classification")
    assert config.data.mixup_alpha
    assert config.data.cutmix_alpha
    (indices,) = _positions(config, 1)
    victim = indices[2]
    assert indices.count(victim) == 2
    poison("classification", [victim], label=NO_CLASS)
    run = _Run(config, _parallel())
    with run.task.train_batches(run.dataset, start_step=0) as batches:
        assert run.train(next(batches))["skipped"] == 1
    explained, distinct = run.search.explain(1), list(dict.fromkeys(indices))
    assert f"At fault: {_names(config, [victim])[0]!r} (a batch" in explained
    assert f"The batch of step 1: {', '.join(map(repr, _names(config, distinct)))}." in explained
    assert len(distinct) == 4


# ---- what explains a skipped step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_examples_of_a_batch_follow_from_its_number(tiny, task):
    config = tiny(task, seed=3)
    size = len(get_task(task).load_dataset(config.data).source("train"))
    repeats = config.data.augment_repeats if task == "classification" else 1
    for batch, indices in enumerate(_positions(config, size // config.batch_size + 2)):  # into the second epoch
        positions = batch_positions(size, batch_size=config.batch_size, seed=3, batch=batch, repeats=repeats)
        assert positions.tolist() == indices


@pytest.mark.parametrize(
    ("count", "bad"),
    [(16, {11}), (16, {0, 15}), (13, {6}), (8, {2, 3, 4}), (1, {0}), (2, {1}), (16, {1, 5, 9, 13}), (256, {200})],
)
def test_bad_rows_are_found_one_by_one(count, bad):
    tried = []

    def is_bad(rows):
        tried.append(tuple(rows))
        return bool(bad & set(rows.tolist()))

    assert [group.tolist() for group in find_bad_rows(is_bad, count)] == [[row] for row in sorted(bad)]
    assert len(tried) == len(set(tried)) <= 1 + 2 * len(bad) * np.ceil(np.log2(max(count, 2)))


def test_what_no_single_row_does_is_said_to_be_so():
    assert find_bad_rows(lambda rows: False, 16) == []
    (alone,) = find_bad_rows(lambda rows: {3, 12} <= set(rows.tolist()), 16)  # only together, in different halves
    (together,) = find_bad_rows(lambda rows: {4, 7} <= set(rows.tolist()), 16)
    trials = []
    (everything,) = find_bad_rows(lambda rows: not trials.append(rows), 1024)
    assert alone.tolist() == list(range(16))
    assert together.tolist() == [4, 5, 6, 7]
    assert everything.tolist() == list(range(1024))
    assert len(trials) < 32


def test_a_search_ends_with_its_budget():
    trials = []

    def is_bad(rows):
        trials.append(rows)
        return bool(np.any(rows % 100 == 0))

    groups = find_bad_rows(is_bad, 1024, max_trials=40)
    assert len(trials) <= 40
    assert groups[0].tolist() == [0]
    assert set(range(0, 1024, 100)) <= set(np.concatenate(groups).tolist())


def _search(config, skipped):
    """Explains steps that do nothing but being skipped or not."""

    def train_step(state, batch):
        return state, {"skipped": skipped}

    job = get_task(config.task)
    state = TrainState.create({"params": {}, "batch_stats": {}}, optax.identity())
    run = types.SimpleNamespace(
        config=config, task=job, dataset=job.load_dataset(config.data), parallel=_parallel(), train_step=train_step
    )
    return NanSearch(run, lambda: state)


def test_weights_at_fault_are_not_put_on_an_example(config):
    now_finite, still_not = (_search(config, skipped).explain(1) for skipped in (0.0, 1.0))
    assert "is finite with the weights of now, so no example is bad by itself. Lower config.optimizer" in now_finite
    assert "No part of the batch stands out, so no single example is at fault. Lower config.optimizer" in still_not
    assert "At fault" not in now_finite + still_not


def test_a_search_that_fails_hides_nothing(config, monkeypatch):
    def train_batches(self, dataset, *, start_step):
        raise OSError("no such disk\nany more")

    monkeypatch.setattr(SegmentationTask, "train_batches", train_batches)
    explained = _search(config, 1.0).explain(1)
    assert "The search for a bad example in the batch failed (no such disk)." in explained
    assert "The batch of step 1: " in explained


def test_searches_are_limited_and_long_lists_of_names_are_cut(config):
    config.batch_size = 24
    search = _search(config, 1.0)
    explained = [search.explain(1) for _ in range(MAX_SEARCHES + 1)]
    size = len(get_task(config.task).load_dataset(config.data).source("train"))
    positions = batch_positions(size, batch_size=24, seed=config.seed, batch=0)
    shown = ", ".join(map(repr, _names(config, positions[:MAX_NAMES])))
    assert all(one.endswith(f"The batch of step 1: {shown} and 14 more.") for one in explained)
    assert ["no further batch is searched" in one for one in explained] == [False] * MAX_SEARCHES + [True]
