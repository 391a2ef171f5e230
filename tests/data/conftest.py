import os
from pathlib import Path
from types import ModuleType

import imagenet_archives
import pytest
import voc_archives

_TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def archives() -> ModuleType:
    """The helpers in tests/helpers/archives/voc_archives.py."""
    return voc_archives


@pytest.fixture(scope="session")
def imagenet() -> ModuleType:
    """The helpers in tests/helpers/archives/imagenet_archives.py."""
    return imagenet_archives


@pytest.fixture
def load(tmp_path):
    """load_segmentation into a fresh data_dir, for archives of three classes unless told otherwise."""
    from flax_mnv2.data.datasets.registry import load_segmentation

    def call(**data):
        defaults = {
            "dataset": "voc_segmentation/custom",
            "data_dir": str(tmp_path / "prepared"),
            "labels": "x,y,z",
        }
        return load_segmentation({**defaults, **data})

    return call


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared real data."""
    path = Path(os.environ.get("MNV2_SHARED") or _TESTS.parent.parent / "shared")
    if not (path / "data").is_dir():
        pytest.skip(f"no shared data in {path} (set MNV2_SHARED)")
    return path
