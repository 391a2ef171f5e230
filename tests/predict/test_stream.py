"""Files become batches of one shape, and a bad one stops nothing."""

import predicting
import pytest

from flax_mnv2 import DataError
from flax_mnv2.predict.stream import predict_files


def test_batches_have_one_shape_and_bad_files_stop_nothing(tmp_path):
    files = [predicting.write(tmp_path / f"{seed:02d}.png", seed, (8, 9)) for seed in range(19)]
    files[4].write_text("no image")
    recorder = predicting.Recorder()
    outcomes = list(predict_files(recorder, files, batch_size=8))
    assert recorder.shapes == [(7, 8, 9, 3)] * 3  # 19 files in 3 batches
    assert recorder.most_held <= 14
    assert sorted(outcome.file for outcome in outcomes) == files
    assert [outcome.file for outcome in outcomes if outcome.error] == [files[4]]
    done = [outcome.file for outcome in outcomes if outcome.prediction]
    assert done == [file for file in files if file != files[4]]


def test_another_shape_starts_another_batch(tmp_path):
    sizes = [(8, 9), (8, 9), (10, 9), (8, 9)]
    files = [predicting.write(tmp_path / f"{seed}.png", seed, size) for seed, size in enumerate(sizes)]
    recorder = predicting.Recorder()
    outcomes = list(predict_files(recorder, files, batch_size=4))
    assert [outcome.prediction for outcome in outcomes] == [(*size, 3) for size in sizes]
    assert recorder.shapes == [(4, 8, 9, 3), (4, 10, 9, 3), (4, 8, 9, 3)]


def test_no_files_no_batches():
    assert list(predict_files(predicting.Recorder(), [], batch_size=4)) == []


def test_unreadable_examples_raise_nothing_but_data_errors(tmp_path):
    """A mistake in the program must not be taken for a bad file."""
    file = predicting.write(tmp_path / "a.png")

    class Buggy(predicting.Recorder):
        def prepare(self, photo):
            raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        list(predict_files(Buggy(), [file], batch_size=1))

    class Strict(predicting.Recorder):
        def prepare(self, photo):
            raise DataError("does not fit")

    (outcome,) = predict_files(Strict(), [file], batch_size=1)
    assert outcome.error == "does not fit"
