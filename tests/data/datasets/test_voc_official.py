"""The configs 2012 and 2012_aug, on tiny stand-ins whose digests replace the official ones."""

import dataclasses
import functools
import hashlib
import http.server
import io
import multiprocessing
import os
import threading

import numpy as np
import pytest
from scipy.io import savemat

from flax_mnv2.data.datasets import voc as voc_segmentation
from flax_mnv2.data.datasets.registry import load_segmentation
from flax_mnv2.data.datasets.sbd import SbdMasks
from flax_mnv2.data.decode import decode_mask
from flax_mnv2.errors import DataError

VOC_NAME = "VOCtrainval_11-May-2012.tar"
NO_SERVER = "http://127.0.0.1:9/x"  # the discard port: refuses at once


@pytest.fixture
def asked():
    """The paths that the server was asked for."""
    return []


@pytest.fixture
def server(tmp_path, asked):
    """A folder served on 127.0.0.1, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path)

        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def official(archives, tmp_path, monkeypatch):
    """Stand-ins for both archives in tmp_path/official, known to the builder by their digests."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "official"
    folder.mkdir()
    splits = {"train": ["a", "b"], "val": ["d", "e"], "trainval": ["a", "b", "d", "e"]}
    files = archives.voc_files(splits=splits)
    for image_id in ("s", "t"):  # images that only SBD has masks for
        files[f"{archives.ROOT}/JPEGImages/{image_id}.jpg"] = archives.jpeg(20, 30)
    voc = archives.write(folder / VOC_NAME, files)
    sizes = {"a": (20, 30), "s": (20, 30), "t": (20, 30), "d": (22, 30)}
    sbd = archives.write(folder / "benchmark.tgz", archives.sbd_files(["a", "s"], ["t", "d"], sizes))
    for name, path in (("VOC2012_FILE", voc), ("SBD_FILE", sbd)):
        old = getattr(voc_segmentation, name)
        data = path.read_bytes()
        size = None if old.size is None else len(data)
        digest = hashlib.new(old.algorithm, data).hexdigest()
        new = dataclasses.replace(old, urls=(NO_SERVER,), size=size, digest=digest)
        monkeypatch.setattr(voc_segmentation, name, new)
    return folder


def _offer(monkeypatch, name, *urls):
    monkeypatch.setattr(voc_segmentation, name, dataclasses.replace(getattr(voc_segmentation, name), urls=urls))


def _manual(official, tmp_path):
    manual = tmp_path / "prepared" / "downloads" / "manual"
    manual.parent.mkdir(parents=True)
    official.rename(manual)
    return manual


def test_published_constants():
    assert len(voc_segmentation.VOC_LABELS) == 21
    assert voc_segmentation.VOC2012_FILE.size == 1_999_639_040
    assert voc_segmentation.VOC2012_FILE.algorithm == "sha256"
    assert len(voc_segmentation.VOC2012_FILE.digest) == 64
    assert len(voc_segmentation.SBD_FILE.digest) == 32


def test_manual_archive(official, tmp_path, load):
    _manual(official, tmp_path)
    dataset = load(dataset="voc_segmentation/2012", labels="")
    assert dataset.name == "voc_segmentation/2012"
    assert dataset.labels == voc_segmentation.VOC_LABELS
    assert dataset.num_examples == {"train": 2, "val": 2, "trainval": 4}


@pytest.mark.parametrize("name", ["", VOC_NAME])
def test_archive_elsewhere(official, load, name):
    dataset = load(dataset="voc_segmentation/2012", labels="", archive=str(official / name))
    assert dataset.num_examples["train"] == 2


def test_trainaug_from_sbd(archives, official, tmp_path, load):
    _manual(official, tmp_path)
    dataset = load(dataset="voc_segmentation/2012_aug", labels="")
    assert dataset.num_examples == {"train": 2, "val": 2, "trainval": 4, "trainaug": 4}
    source = dataset.source("trainaug")
    masks = {source[i]["image_id"]: decode_mask(source[i]["segmentation_mask"]) for i in range(4)}
    assert list(masks) == ["a", "b", "s", "t"]  # without d, which is in val
    np.testing.assert_array_equal(masks["a"], archives.mask_array(20, 30))  # VOC's own
    assert (masks["s"] == 7).all()
    assert (masks["t"] == 7).all()


@pytest.mark.parametrize("kind", ["SegmentationClassAug", "SegmentationClassAug.zip", "mine.tar"])
def test_trainaug_from_ready_masks(archives, official, load, kind):
    masks = {f"SegmentationClassAug/{name}.png": archives.palette_png(np.full((20, 30), 5)) for name in ("a", "d", "t")}
    path = archives.write(official / kind, masks)
    explicit = {"sbd_archive": str(path)} if kind == "mine.tar" else {}
    dataset = load(dataset="voc_segmentation/2012_aug", labels="", archive=str(official / VOC_NAME), **explicit)
    source = dataset.source("trainaug")
    assert [source[i]["image_id"] for i in range(len(source))] == ["a", "b", "t"]
    assert (decode_mask(source[2]["segmentation_mask"]) == 5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"benchmark_RELEASE/dataset/cls/s.mat": b"not matlab"},
            r"cls/s\.mat: no readable GTcls\.Segmentation",
        ),
        ({"benchmark_RELEASE/dataset/train.txt": b"a\ns\nmissing"}, "'missing' but holds no mask"),
    ],
)
def test_damaged_sbd(archives, official, tmp_path, load, change, message):
    files = archives.sbd_files(["a", "s"], ["t"], {"a": (20, 30), "s": (20, 30), "t": (20, 30)}) | change
    sbd = archives.write(tmp_path / "sbd.tgz", files)
    # "missing" needs an image for the mask to be looked for
    voc = archives.voc_files(splits={"train": ["a"], "val": ["d"]})
    for image_id in ("s", "t", "missing"):
        voc[f"{archives.ROOT}/JPEGImages/{image_id}.jpg"] = archives.jpeg(20, 30)
    with pytest.raises(DataError, match=message):
        load(
            dataset="voc_segmentation/2012_aug",
            labels="",
            archive=_known(archives, official, voc),
            sbd_archive=str(sbd),
        )


def _mat(**fields):
    contents = {"Boundaries": np.zeros((20, 1)).astype(object), "Segmentation": np.eye(3, 4, dtype=np.uint8)} | fields
    buffer = io.BytesIO()
    savemat(buffer, {"other": 1, "GTcls": contents}, do_compression=True)
    return buffer.getvalue()


def _other_variable():
    buffer = io.BytesIO()
    savemat(buffer, {"other": 1})
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8"])
def test_sbd_masks_of_any_type(archives, tmp_path, dtype):
    pixels = np.arange(35 * 50).reshape(35, 50) % 21
    files = archives.sbd_files(["a"], ["b"], {"a": (2, 3), "b": (2, 3)})
    files["benchmark_RELEASE/dataset/cls/a.mat"] = _mat(Segmentation=pixels.astype(dtype))
    with SbdMasks(archives.write(tmp_path / "x.tgz", files)) as masks:
        assert masks.mask("a").dtype == np.uint8
        np.testing.assert_array_equal(masks.mask("a"), pixels)
        assert (masks.mask("b") == 7).all()


@pytest.mark.parametrize(
    "data",
    [
        _mat(Segmentation=np.full((2, 3), 300.0)),
        _mat(Segmentation="hello"),
        _mat(Segmentation=np.zeros((2, 2)).astype(object)),
        _mat(Segmentation=np.zeros((2, 2, 2))),
        _mat()[:-40],
        _mat()[:128],
        _other_variable(),
        b"",
    ],
    ids=["no classes", "text", "cells", "3D", "cut", "header", "other", "empty"],
)
def test_damaged_sbd_masks(archives, tmp_path, data):
    files = archives.sbd_files(["a"], ["b"], {"a": (2, 3), "b": (2, 3)})
    files["benchmark_RELEASE/dataset/cls/a.mat"] = data
    files["benchmark_RELEASE/dataset/val.txt"] = b"\xff\xfe\xfa"
    with SbdMasks(archives.write(tmp_path / "x.tgz", files)) as masks:
        with pytest.raises(DataError, match=r"x\.tgz: .*a\.mat: no readable GTcls\.Segmentation"):
            masks.mask("a")
        with pytest.raises(DataError, match=r"val\.txt is not UTF-8"):
            masks.ids()


def _known(archives, official, files):
    """Write a VOC archive and make its digest the official one (the official fixture undoes it)."""
    path = archives.write(official / VOC_NAME, files)
    data = path.read_bytes()
    voc_segmentation.VOC2012_FILE = dataclasses.replace(
        voc_segmentation.VOC2012_FILE, size=len(data), digest=hashlib.sha256(data).hexdigest()
    )
    return str(path)


def test_neither_sbd_nor_masks(archives, official, tmp_path, load):
    wrong = archives.write(tmp_path / "wrong.zip", {"readme.md": b""})
    with pytest.raises(DataError, match=r"wrong\.zip holds neither SBD"):
        load(dataset="voc_segmentation/2012_aug", labels="", archive=str(official), sbd_archive=str(wrong))


@pytest.mark.parametrize(("cut", "message"), [(10, "bytes, expected"), (0, "its sha256 is")])
def test_wrong_manual_archive(official, load, cut, message):
    path = official / VOC_NAME
    data = path.read_bytes()
    path.write_bytes(data[cut:-1] + b"\1" if not cut else data[:-cut])
    with pytest.raises(DataError, match=rf"is not the official {VOC_NAME}: .*{message}"):
        load(dataset="voc_segmentation/2012", labels="", archive=str(path))


def test_named_archive_is_missing(load):
    with pytest.raises(DataError, match=r"There is no file /none/x\.tar.*voc_segmentation/custom"):
        load(dataset="voc_segmentation/2012", labels="", archive="/none/x.tar")


def test_no_network(tmp_path, official, load):
    known = voc_segmentation.VOC2012_FILE
    with pytest.raises(DataError) as caught:
        load(dataset="voc_segmentation/2012", labels="")
    message = str(caught.value)
    target = tmp_path / "prepared" / "downloads" / "manual" / VOC_NAME
    assert all(text in message for text in (VOC_NAME, known.size_text, known.digest, f"put it at {target}", NO_SERVER))
    assert list(target.parent.iterdir()) == []
    assert not (tmp_path / "prepared" / "voc_segmentation" / "2012").exists()


def test_download_with_mirrors(official, server, tmp_path, load, monkeypatch):
    """The first address refuses, the second has no such file, the third a wrong one, the fourth is right."""
    folder, address = server
    (folder / "wrong.tar").write_bytes(b"x" * (official / VOC_NAME).stat().st_size)
    for name in (VOC_NAME, "benchmark.tgz"):
        (official / name).rename(folder / name)
    urls = (NO_SERVER, f"{address}/none", f"{address}/wrong.tar", f"{address}/{VOC_NAME}")
    _offer(monkeypatch, "VOC2012_FILE", *urls)
    _offer(monkeypatch, "SBD_FILE", f"{address}/benchmark.tgz")
    dataset = load(dataset="voc_segmentation/2012_aug", labels="")
    assert dataset.num_examples["trainaug"] == 4
    manual = tmp_path / "prepared" / "downloads" / "manual"
    assert sorted(path.name for path in manual.iterdir()) == sorted([VOC_NAME, "benchmark.tgz"])


def _load_in_child(url, voc_file, data_dir, queue):
    queue.put("imported")
    os.environ["no_proxy"] = "127.0.0.1"
    voc_segmentation.VOC2012_FILE = dataclasses.replace(voc_file, urls=(url,))
    data = {"dataset": "voc_segmentation/2012", "data_dir": data_dir}
    queue.put(load_segmentation(data).num_examples)


def test_two_processes_download_once(official, server, asked, tmp_path, load, monkeypatch):
    """The second waits while the first downloads and prepares, and takes what it has got; one of them is this one."""
    folder, address = server
    (official / VOC_NAME).rename(folder / VOC_NAME)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    url = f"{address}/{VOC_NAME}"
    arguments = (url, voc_segmentation.VOC2012_FILE, str(tmp_path / "prepared"), queue)
    child = context.Process(target=_load_in_child, args=arguments)
    child.start()
    assert queue.get(timeout=120) == "imported"
    _offer(monkeypatch, "VOC2012_FILE", url)
    assert load(dataset="voc_segmentation/2012", labels="").num_examples["train"] == 2
    assert queue.get(timeout=120)["train"] == 2
    child.join()
    assert child.exitcode == 0
    assert asked == [f"/{VOC_NAME}"]


def test_every_mirror_fails(official, server, load, tmp_path, monkeypatch):
    folder, address = server
    (folder / "wrong.tar").write_bytes(b"x")
    _offer(monkeypatch, "VOC2012_FILE", f"{address}/none", f"{address}/wrong.tar")
    with pytest.raises(DataError, match=r"none \(HTTP 404\) or .*wrong\.tar \(not the official file: it has 1 bytes"):
        load(dataset="voc_segmentation/2012", labels="")
    assert list((tmp_path / "prepared" / "downloads" / "manual").iterdir()) == []
