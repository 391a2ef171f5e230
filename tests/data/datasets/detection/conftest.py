import box_archives
import numpy as np
import pytest


@pytest.fixture(scope="session")
def boxes():
    """The helpers in tests/helpers/archives/box_archives.py."""
    return box_archives


@pytest.fixture
def load(tmp_path, archives):
    """load_detection of members, written as a folder unless told otherwise, into a fresh data_dir."""
    from flax_mnv2.data.datasets.registry import load_detection

    def call(dataset, files, *, where="x", **data):
        archive = str(archives.write(tmp_path / where, files)) if isinstance(files, dict) else str(files)
        return load_detection({"dataset": dataset, "data_dir": str(tmp_path / "prepared"), "archive": archive, **data})

    return call


@pytest.fixture
def assert_as_drawn(boxes):
    """Compares a data set with what box_archives draws, each box with its class."""

    def check(dataset, splits, *, ids=None, with_ignored=True):
        assert dataset.labels == boxes.LABELS
        assert dataset.num_examples == {split: len(names) for split, names in splits.items()}
        most = {split: max(len(boxes.BOXES[name]) for name in names) for split, names in splits.items()}
        assert dataset.max_boxes == most
        for split, names in splits.items():
            drawn = [each[0] for name in names for each in boxes.BOXES[name]]
            counts = [drawn.count(label) for label in boxes.LABELS]
            assert list(dataset.boxes[split]) == counts
            assert dataset.class_fractions()[split] == pytest.approx([count / len(drawn) for count in counts])
        for split, names in splits.items():
            source = dataset.source(split)
            for index, name in enumerate(names):
                example, drawn = source[index], boxes.BOXES[name]
                objects = example["objects"]
                assert example["image_id"] == (ids[name] if ids else name)
                assert example["image"] == boxes.image(name)
                assert (example["height"], example["width"]) == boxes.SIZES[name]
                assert [dataset.labels[label] for label in objects["label"]] == [each[0] for each in drawn]
                np.testing.assert_allclose(
                    objects["bbox"], np.array(boxes.fractions(name)).reshape(-1, 4), rtol=0, atol=1e-6
                )
                ignored = [each[-1] and with_ignored for each in drawn]
                assert objects["ignored"].tolist() == ignored
                assert objects["area"].shape == objects["id"].shape == objects["label"].shape == (len(drawn),)
        return dataset

    return check


@pytest.fixture
def left_behind(tmp_path):
    """What a refused preparation leaves, beside its lock."""
    return lambda: [path for path in (tmp_path / "prepared").rglob("*") if path.is_file() and path.name[0] != "."]
