"""What a run notes of where it runs: a start is added to those before, and damage to the file does not stop it."""

import json
import types

import jax
import pytest

from flax_mnv2 import DataError
from flax_mnv2.training.logging.run_record import environment, record_start


def _dataset(**fractions):
    names = {"name": "photos", "counted": "images", "notes": lambda: ["train: all"], "histogram": lambda: ["a  1 ± 2"]}
    return types.SimpleNamespace(**names, class_fractions=lambda: fractions)


def test_starts_are_added_up_to_a_limit(tmp_path):
    for step in range(25):
        record_start(tmp_path, _dataset(train=[0.25, 0.75]), step=step)
    record = json.loads((tmp_path / "run.json").read_text())
    assert [start["step"] for start in record["starts"]] == list(range(5, 25))
    assert record["data"] == {
        "name": "photos",
        "notes": ["train: all"],
        "counted": "images",
        "fractions": {"train": [0.25, 0.75]},
    }
    assert record["starts"][0]["versions"]["jax"] == jax.__version__
    assert record["starts"][0]["devices"] == f"{jax.device_count()} cpu: cpu"


def test_data_without_counts_has_its_table(tmp_path):
    record_start(tmp_path, _dataset(), step=0)
    assert json.loads((tmp_path / "run.json").read_text())["data"]["histogram"] == ["a  1 ± 2"]


@pytest.mark.parametrize("content", ["{", "[]", '{"starts": 3}'])
def test_a_damaged_record_is_begun_anew(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    record_start(tmp_path, _dataset(), step=7)
    assert [start["step"] for start in json.loads((tmp_path / "run.json").read_text())["starts"]] == [7]


def test_a_folder_that_is_not_there_is_one_message(tmp_path):
    with pytest.raises(DataError, match="Cannot write in the workdir"):
        record_start(tmp_path / "absent", _dataset(), step=0)


def test_an_environment_is_json():
    assert json.loads(json.dumps(environment(3)))["step"] == 3
