"""Damaged examples that are left out: who takes their place, how many may be missing, and what is said."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from toy_rows import EvalRow, Placed, TrainRow, assert_same

from flax_mnv2.data.loader.bad_examples import BadExampleError, report
from flax_mnv2.data.loader.batches import eval_batches, train_batches
from flax_mnv2.data.loader.options import LoaderOptions
from flax_mnv2.errors import DataError
from flax_mnv2.training.evaluate import evaluate

WHOLE = [100 + position for position in range(12)]
DAMAGED = [*WHOLE[:3], -3, -4, *WHOLE[5:11], -11]  # positions 3, 4 and 11


def _options(**changes):
    return LoaderOptions(**{"batch_size": 4, "seed": 3, "skip_bad": True, "max_bad": 3, **changes})


def _train(source, count, *, start_step=0, **changes):
    with train_batches(TrainRow(source), source, _options(**changes), start_step=start_step) as batches:
        return [next(batches) for _ in range(count)], batches.bad_examples


def _evaluate(source, **changes):
    with eval_batches(EvalRow(source), source, _options(**changes)) as batches:
        return list(batches), batches.bad_examples


def test_the_next_readable_example_takes_the_place_and_no_other_row_changes():
    clean, none = _train(WHOLE, 9)
    batches, bad = _train(DAMAGED, 9)
    assert none == {}
    assert bad == {position: f"example{position} (its value is {-position})" for position in (3, 4, 11)}
    replaced = 0
    for before, after in zip(clean, batches, strict=True):
        assert after.keys() == before.keys()
        np.testing.assert_array_equal(after["noise"], before["noise"])  # the row goes on with its generator
        for row, index in enumerate(before["index"]):
            expected = {3: 5, 4: 5, 11: 0}.get(index, index)
            assert (after["index"][row], after["value"][row]) == (expected, WHOLE[expected])
            replaced += index in bad
    assert replaced == 9  # three epochs
    assert_same(clean, _train(WHOLE, 9, skip_bad=False)[0])


def test_skipping_does_not_depend_on_processes_or_resumption():
    batches, bad = _train(DAMAGED, 6)
    assert_same(batches[4:], _train(DAMAGED, 2, start_step=4)[0])
    parts = [_train(DAMAGED, 6, process_index=part, process_count=2) for part in range(2)]
    steps = zip(*(taken for taken, _ in parts), strict=True)
    assert_same(batches, [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in steps])
    assert parts[0][1] | parts[1][1] == bad


def test_one_more_than_the_budget_stops():
    with pytest.raises(DataError, match=r"More than 2 examples .*example\d+ \(.*--config\.data\.max_bad_examples"):
        _train(DAMAGED, 3, max_bad=2)


def test_nothing_readable_stops():
    with pytest.raises(DataError, match="2 examples in a row cannot be read: example0"):
        _train([-1, -1], 1, batch_size=1, seed=1)


def test_each_bad_example_is_reported_once(caplog):
    source = Placed(DAMAGED, "a split of this test alone")
    _train(source, 9)
    _evaluate(source)
    lines = [record.getMessage() for record in caplog.records if "its value is" in record.getMessage()]
    assert len(lines) == 3
    assert report({1: "a (x)", 2: "b (y)"}) == "2 bad examples were left out: a (x); b (y)"


def test_an_evaluation_counts_what_it_leaves_out():
    with pytest.raises(DataError, match="'example3'"):
        _evaluate(DAMAGED, skip_bad=False)
    batches, bad = _evaluate(DAMAGED)
    assert sorted(bad) == [3, 4, 11]
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert list(np.flatnonzero(~rows["mask"])) == [3, 4, 11]
    assert list(rows["index"]) == [-1 if position in bad else position for position in range(12)]
    assert list(rows["value"]) == [0 if position in bad else WHOLE[position] for position in range(12)]


@pytest.mark.parametrize("skip", [True, False])
def test_evaluate_says_how_many_were_left_out(skip):
    counted = []
    evaluator = SimpleNamespace(
        needs_examples=lambda batch: False, add=lambda batch, sums, examples: counted.append(int(sums))
    )
    task = SimpleNamespace(
        evaluator=lambda report: evaluator,
        config=SimpleNamespace(eval=SimpleNamespace(batch_size=4)),
        batch_fields=("value",),
        eval_batch_size=lambda dataset, split, num_devices: 4,
        eval_batches=lambda dataset, split, batch_size: eval_batches(
            EvalRow(DAMAGED), DAMAGED, _options(skip_bad=skip)
        ),
    )
    arguments = (
        task,
        SimpleNamespace(put_batch=lambda batch: batch, devices=[None]),
        lambda variables, batch: (batch["mask"].sum(), None),
        None,
        SimpleNamespace(source=lambda split: DAMAGED),
    )
    if not skip:
        with pytest.raises(DataError, match="'example3'"):
            evaluate(*arguments, split="val")
        return
    evaluation = evaluate(*arguments, split="val")
    assert (evaluation.num_examples, evaluation.num_bad, sum(counted)) == (9, 3, 9)
    assert sorted(evaluation.bad_examples) == [3, 4, 11]


def test_a_bad_example_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(BadExampleError("a.jpg", "it is empty.")))
    assert (error.name, error.reason) == ("a.jpg", "it is empty")
    assert str(error).startswith("Example 'a.jpg': it is empty. ")
