"""Damaged examples, images made to exhaust memory, and input that stops coming.

What cannot be found, and is tested as such: bits flipped inside the data of a JPEG or a BMP, which have no checksum.
Where the decoder can go on it makes other pixels of them. In a prepared data set a hash of every record finds them.
"""

import io
import multiprocessing
import os
import pathlib
import pickle
import signal
import struct
import subprocess
import sys
import time
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from stuck_input import Row

from flax_mnv2.data.augment.random_crop import decode_random_crop
from flax_mnv2.data.augment.segmentation import check_mask, decode_image, decode_mask
from flax_mnv2.data.datasets.registry import load_segmentation
from flax_mnv2.data.encoded_image import check_encoded
from flax_mnv2.data.loader.bad_examples import BadExampleError, FaultRules, report
from flax_mnv2.data.loader.batches import eval_batches, shuffled_batches, train_batches
from flax_mnv2.data.loader.classification import (
    classification_eval_batches,
    classification_train_batches,
    decode_rgb,
)
from flax_mnv2.errors import DataError
from flax_mnv2.image_processing import reading as image_io
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.training.evaluate import evaluate

SKIP = FaultRules(skip=True, max_bad=3, timeout=120.0)
NUM_CLASSES = 5


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height=40, width=60, seed=0):
    """A smooth picture, so that JPEG compresses it as it does photos."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def png(width, height, *, bits=1, colour=0, pixels=b""):
    """A PNG whose header says what it likes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


BOMB = png(60_000, 60_000, pixels=bytes(2_000_000))  # two kilobytes; 450 MB as stored, 10.8 GB as RGB


def example(index, **changes):
    mask = np.random.default_rng(index).integers(0, NUM_CLASSES, (24, 32), dtype=np.uint8)
    mask[0] = 255
    whole = {
        "image": encode(photo(24, 32, seed=index), "JPEG"),
        "segmentation_mask": encode(Image.fromarray(mask), "PNG"),
        "image_id": f"example{index}",
    }
    return whole | changes


def segmentation(source, count=None, **changes):
    """Batches of training, or all of an evaluation where ``count`` is None; with the iterator's list of bad ones."""
    shared = {"ignore_label": 255, "batch_size": 4, "num_classes": NUM_CLASSES, "num_threads": 1, **changes}
    if count is None:
        with eval_batches(source, size=(24, 32), **shared) as batches:
            return list(batches), batches.bad_examples
    augmentation = {"crop_size": 16, "min_scale": 0.5, "max_scale": 2.0, "scale_step": 0.0, "flip": True}
    with train_batches(source, **augmentation, **{"seed": 3, "start_step": 0, **shared}) as batches:
        return [next(batches) for _ in range(count)], batches.bad_examples


def classification(source, count=None, **changes):
    shared = {"batch_size": 4, "num_classes": NUM_CLASSES, "num_threads": 1, **changes}
    if count is None:
        with classification_eval_batches(source, transform=np.asarray, size=(24, 32), **shared) as batches:
            return list(batches), batches.bad_examples
    with classification_train_batches(source, transform=_crop, seed=0, start_step=0, **shared) as batches:
        return [next(batches) for _ in range(count)], batches.bad_examples


def _crop(data, rng):
    return decode_random_crop(data, rng, size=16)


# ---------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("kind", "options", "mode"),
    [
        ("JPEG", {}, "RGB"),
        ("JPEG", {"progressive": True}, "L"),
        ("JPEG", {"icc_profile": bytes(70_000), "comment": b"\xff\xd9"}, "CMYK"),
        ("PNG", {}, "P"),
        ("WEBP", {}, "RGB"),
        ("WEBP", {"lossless": True}, "RGB"),
        ("WEBP", {"exif": b"Exif\0\0"}, "RGBA"),
        ("BMP", {}, "RGB"),
    ],
)
def test_sizes_are_read_from_headers_and_cut_files_are_refused(kind, options, mode):
    data = encode(photo(40, 64).convert(mode), kind, **options)
    assert check_encoded(data) == (40, 64)
    assert decode_image(data).shape == (40, 64, 3)
    for keep in {0, 1, 2, 10, 20, 40, *range(len(data) // 9, len(data), len(data) // 9), len(data) - 16}:
        for decode in (decode_image, decode_rgb):
            with pytest.raises(DataError, match=r"not a readable JPEG or PNG image|corrupt image"):
                decode(data[:keep])


def test_a_cut_jpeg_does_not_pass_for_whole_because_of_its_thumbnail():
    exif = b"Exif\0\0" + encode(photo(16, 16), "JPEG")  # as cameras write: a whole JPEG inside the header
    data = encode(photo(64, 64), "JPEG", exif=exif)
    assert data.count(b"\xff\xd9") == 2
    assert decode_image(data).shape == (64, 64, 3)
    with pytest.raises(DataError, match="truncated: a JPEG without its end marker"):
        decode_image(data[:-2])


def test_flipped_bits_give_an_error_or_an_image_of_the_right_size():
    rng, outcomes = np.random.default_rng(0), {"JPEG": [], "PNG": []}
    for kind, found in outcomes.items():
        whole = encode(photo(40, 64), kind)
        for _ in range(100):
            data = bytearray(whole)
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            try:
                image = decode_image(bytes(data))
                found.append(image.shape[0] * image.shape[1] <= image_io.MAX_PIXELS)
            except DataError:
                found.append(None)
    assert all(found in (None, True) for found in outcomes["JPEG"] + outcomes["PNG"])
    assert {None, True} == set(outcomes["JPEG"])  # some pass, which is why records have hashes
    assert outcomes["PNG"].count(None) > 70


@pytest.mark.parametrize(
    "decode",
    [
        decode_image,
        decode_rgb,
        decode_mask,
        lambda data: decode_random_crop(data, np.random.default_rng(0), size=32),
        lambda data: decode_random_crop(data, np.random.default_rng(0), size=32, reduced=True),
    ],
    ids=["image", "rgb", "mask", "crop", "reduced crop"],
)
def test_a_bomb_is_refused_before_it_is_decoded(decode):
    assert len(BOMB) < 4_000
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"60000x60000 pixels .*more than the limit of 134,217,728"):
        decode(BOMB)
    assert time.perf_counter() - began < 1.0


def test_a_jpeg_bomb_is_refused():
    data = bytearray(encode(photo(), "JPEG"))
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(DataError, match="65000x65000 pixels"):
        decode_image(bytes(data))


def test_other_formats_never_reach_a_decoder():
    for kind in ("GIF", "TIFF", "PPM", "JPEG2000", "ICO"):
        with pytest.raises(DataError, match="its format is none of JPEG, PNG, WEBP, BMP"):
            decode_image(encode(photo(), kind))


# ---------------------------------------------------------------------------------- pictures of users


@pytest.mark.parametrize("kind", image_io.FILE_FORMATS)
def test_documented_formats_are_read(tmp_path, kind):
    photo(24, 32).save(tmp_path / "a.img", kind)
    assert image_io.read_picture(tmp_path / "a.img", "image 0").shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a PostScript file"),
        (b"%PDF-1.4\n", "it is a PDF file"),
        (encode(photo(), "PPM"), r"its format is unknown \(it begins with b'P6"),
        (b"", "it is empty"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, data, message):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.png: {message}.*formats JPEG, PNG, WEBP, BMP, GIF, TIFF"):
        image_io.read_picture(tmp_path / "a.png", "image 0")


def _gif(width, height):
    data = bytearray(encode(Image.new("L", (8, 8)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BOMB, "3600000000 pixels"),
        (lambda: _gif(12_000, 12_000), r"12000x12000 pixels .*limit of 134,217,728"),  # Pillow would only warn
        (lambda: _gif(65_535, 65_535), "4294836225 pixels"),
        (lambda: encode(Image.new("1", (12_000, 12_000)), "TIFF", compression="group4"), "12000x12000 pixels"),
    ],
    ids=["png", "gif", "large gif", "tiff"],
)
def test_the_processor_refuses_bombs_once_and_clearly(tmp_path, make, message):
    (tmp_path / "bomb").write_bytes(make())
    with pytest.raises(DataError, match=rf"bomb: .*{message}.*at most 134,217,728 pixels"):
        MobileNetV2ImageProcessor()(tmp_path / "bomb")


def test_an_opened_file_has_the_same_limit(tmp_path, monkeypatch):
    photo(24, 32).save(tmp_path / "a.png")
    monkeypatch.setattr(image_io, "MAX_PIXELS", 24 * 32 - 1)
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(DataError, match=r"image 0 .*32x24 pixels.* limit"):
        MobileNetV2ImageProcessor()(opened)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 24 * 32)
    assert image_io.read_picture(tmp_path / "a.png", "image 0").shape == (24, 32, 3)


def test_pillow_does_not_warn_below_our_limit(tmp_path, monkeypatch):
    photo(24, 32).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # it warns from there, and raises at twice as many
    assert image_io.read_picture(tmp_path / "a.png", "image 0").shape == (24, 32, 3)  # warnings are errors here


# ---------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("count", [1, None], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"image": b"rubbish"}, "not a readable JPEG"),
        ({"image": BOMB}, "60000x60000 pixels"),
        ({"image": encode(photo(24, 32), "JPEG")[:-40]}, "truncated"),
        ({"image": encode(photo(24, 40), "JPEG")}, "the mask is 32x24, its image 40x24"),
        ({"segmentation_mask": BOMB}, "60000x60000 pixels"),
        (
            {"segmentation_mask": encode(Image.fromarray(np.full((24, 32), 77, np.uint8)), "PNG")},
            r"the mask has the value 77, expected 0 … 4 or the ignore label 255",
        ),
    ],
    ids=["rubbish", "bomb", "cut", "size", "mask bomb", "mask value"],
)
def test_a_damaged_example_stops_with_its_name_and_the_way_out(count, damage, message):
    source = [example(0, **damage)]
    with pytest.raises(DataError, match=rf"'example0': .*{message}.*--config\.data\.bad_examples=skip"):
        segmentation(source, count)


def test_mask_values():
    mask = np.array([[0, 4, 255], [1, 2, 3]], np.uint8)
    check_mask(mask, (2, 3), num_classes=5, ignore_label=255)
    check_mask(mask, (2, 3), num_classes=None, ignore_label=0)
    for classes, ignore, wrong in ((4, 255, "the value 4"), (3, 255, "the values 3, 4"), (5, 2, "the value 255")):
        with pytest.raises(DataError, match=rf"has {wrong}, expected 0 … {classes - 1} or the ignore label {ignore}"):
            check_mask(mask, (2, 3), num_classes=classes, ignore_label=ignore)
    check_mask(mask, (2, 3), num_classes=256, ignore_label=2)


@pytest.mark.parametrize("count", [2, None], ids=["train", "eval"])
@pytest.mark.parametrize("label", [-1, NUM_CLASSES])
def test_a_label_out_of_range_is_named(count, label):
    image = encode(photo(24, 32), "JPEG")
    source = [{"image": image, "label": i if i != 2 else label, "file_name": f"{i}.jpg"} for i in range(4)]
    with pytest.raises(DataError, match=rf"'2\.jpg': its label is {label}, expected 0 … 4"):
        classification(source, count)
    batches, bad = classification(source, count, rules=SKIP)
    assert list(bad) == [2]
    assert all(label not in batch["label"] for batch in batches)


# ---------------------------------------------------------------------------------- skipping


@pytest.fixture
def whole():
    return [example(index) for index in range(12)]


@pytest.fixture
def damaged(whole):
    """Positions 3, 4 and 11 cannot be read."""
    broken = list(whole)
    broken[3] = whole[3] | {"image": whole[3]["image"][:-30]}
    broken[4] = whole[4] | {"segmentation_mask": encode(Image.fromarray(np.full((24, 32), 77, np.uint8)), "PNG")}
    broken[11] = whole[11] | {"image": b"rubbish"}
    return broken


def _assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_next_readable_example_takes_the_place_and_no_other_row_changes(whole, damaged):
    clean, none = segmentation(whole, 9, rules=SKIP)
    batches, bad = segmentation(damaged, 9, rules=SKIP)
    assert none == {}
    assert sorted(bad) == [3, 4, 11]
    assert "truncated" in bad[3]
    assert "value 77" in bad[4]
    assert bad[11].startswith("example11 (not a readable")
    replaced = 0
    for before, after in zip(clean, batches, strict=True):
        assert after.keys() == before.keys()
        for row, index in enumerate(before["index"]):
            if index in bad:
                assert after["index"][row] == {3: 5, 4: 5, 11: 0}[index]
                assert not np.array_equal(after["image"][row], before["image"][row])
                replaced += 1
            else:
                for name in before:
                    np.testing.assert_array_equal(after[name][row], before[name][row])
    assert replaced == 9  # three epochs
    _assert_same(clean, segmentation(whole, 9)[0])


def test_skipping_does_not_depend_on_workers_processes_or_resumption(damaged):
    batches, bad = segmentation(damaged, 6, rules=SKIP)
    with_workers, same_bad = segmentation(damaged, 6, rules=SKIP, num_workers=2)
    _assert_same(batches, with_workers)
    assert bad == same_bad
    _assert_same(batches[4:], segmentation(damaged, 2, rules=SKIP, start_step=4)[0])
    parts = [segmentation(damaged, 6, rules=SKIP, process_index=part, process_count=2) for part in range(2)]
    steps = zip(*(taken for taken, _ in parts), strict=True)
    _assert_same(batches, [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in steps])
    assert parts[0][1] | parts[1][1] == bad


@pytest.mark.parametrize("workers", [0, 2])
def test_one_more_than_the_budget_stops(damaged, workers):
    rules = FaultRules(skip=True, max_bad=2, timeout=120.0)
    with pytest.raises(DataError, match=r"More than 2 examples .*example\d+ \(.*--config\.data\.max_bad_examples"):
        segmentation(damaged, 3, rules=rules, num_workers=workers)


def test_nothing_readable_stops():
    with pytest.raises(DataError, match="2 examples in a row cannot be read: example0"):
        segmentation([example(0, image=b""), example(1, image=b"")], 1, rules=SKIP, batch_size=1, seed=1)


def test_each_bad_example_is_reported_once(damaged, caplog):
    for each in damaged:
        each["image_id"] += " once"
    source = _Placed(damaged, "a split of this test alone")
    segmentation(source, 9, rules=SKIP)
    segmentation(source, rules=SKIP)
    lines = [record.getMessage() for record in caplog.records if " once (" in record.getMessage()]
    assert len(lines) == 3
    assert report({1: "a (x)", 2: "b (y)"}) == "2 bad examples were left out: a (x); b (y)"


class _Placed(list):
    def __init__(self, items, place):
        super().__init__(items)
        self.place = place


def test_an_evaluation_counts_what_it_leaves_out(whole, damaged):
    with pytest.raises(DataError, match="'example3'"):
        segmentation(damaged)
    clean, _ = segmentation(whole)
    batches, bad = segmentation(damaged, rules=SKIP)
    assert sorted(bad) == [3, 4, 11]
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert list(np.flatnonzero(~rows["mask"])) == [3, 4, 11]
    assert (rows["label"][~rows["mask"]] == 255).all()
    assert (rows["index"][~rows["mask"]] == -1).all()
    expected = {name: np.concatenate([batch[name] for batch in clean]) for name in clean[0]}
    for name, values in rows.items():
        np.testing.assert_array_equal(values[rows["mask"]], expected[name][rows["mask"]])


@pytest.mark.parametrize("skip", [True, False])
def test_evaluate_says_how_many_were_left_out(damaged, skip):
    task = SimpleNamespace(
        config=SimpleNamespace(eval=SimpleNamespace(batch_size=4)),
        batch_fields=("image", "label"),
        eval_batches=lambda dataset, split: eval_batches(
            damaged, size=(24, 32), batch_size=4, ignore_label=255, num_classes=5, rules=SKIP if skip else FaultRules()
        ),
    )
    arguments = (
        task,
        SimpleNamespace(put_batch=lambda batch: batch),
        lambda variables, batch: (batch["mask"].sum(), None),
        None,
        SimpleNamespace(source=lambda split: damaged),
    )
    if not skip:
        with pytest.raises(DataError, match="'example3'"):
            evaluate(*arguments, split="val")
        return
    evaluation = evaluate(*arguments, split="val")
    assert (evaluation.num_examples, evaluation.num_bad, int(evaluation.sums)) == (9, 3, 9)
    assert sorted(evaluation.bad_examples) == [3, 4, 11]


def test_a_bad_example_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(BadExampleError("a.jpg", "it is empty.")))
    assert (error.name, error.reason) == ("a.jpg", "it is empty")
    assert str(error).startswith("Example 'a.jpg': it is empty. ")


# ---------------------------------------------------------------------------------- records


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return load_segmentation({"dataset": "shapes_segmentation", "data_dir": str(tmp_path_factory.mktemp("prepared"))})


@pytest.fixture
def record_file(shapes):
    """The file of the training split, to be damaged; it is whole again afterwards."""
    path = pathlib.Path(shapes.builders["train"]().info.splits["train"].filepaths[0])
    data = path.read_bytes()
    yield path
    path.write_bytes(data)


def test_a_damaged_record_is_named_and_its_neighbours_are_read(shapes, record_file):
    data = bytearray(record_file.read_bytes())
    for at in range(200_000, 200_010):
        data[at] ^= 0xFF
    record_file.write_bytes(data)
    source = shapes.source("train")
    errors = {}
    for index in range(40, 80):
        try:
            source[index]
        except DataError as error:
            errors[index] = str(error)
    assert len(errors) == 1
    index, message = errors.popitem()
    for words in (f"record {index} of {record_file}", "hash mismatch", "Delete"):
        assert words in message
    settings = {"num_classes": 256, "batch_size": 40, "rules": SKIP}
    batches, bad = segmentation(source, 10, **settings)
    assert list(bad) == [index]
    seen = np.concatenate([batch["index"] for batch in batches])
    assert sorted(set(seen.tolist())) == [position for position in range(400) if position != index]


@pytest.mark.parametrize("keep", [0, 1_000_000])
def test_a_file_cut_short_stops_even_when_skipping(shapes, record_file, keep):
    record_file.write_bytes(record_file.read_bytes()[:keep])
    source = shapes.source("train")
    with pytest.raises(BadExampleError, match="its record cannot be read"):
        source[7]
    with pytest.raises(DataError, match=r"4 examples in a row cannot be read: record \d+ of"):
        segmentation(source, 1, rules=SKIP, num_classes=256)


def test_a_record_without_a_feature_is_named(shapes, monkeypatch):
    source = shapes.source("train")
    whole, lacking = {"image": b"x", "segmentation_mask": b"y", "image_id": b"a"}, {"image": None, "image_id": b"b"}
    monkeypatch.setattr(source, "_records", [whole, lacking])
    assert source[0] == {"image": b"x", "segmentation_mask": b"y", "image_id": "a"}
    with pytest.raises(BadExampleError, match=r"'record 1 of .*array_record.*': its record has no image, segmentation"):
        source[1]


# ---------------------------------------------------------------------------------- waiting


def _with_workers(**changes):
    options = {"batch_size": 4, "seed": 0, "start_step": 0, "num_threads": 1, "num_workers": 2, **changes}
    return shuffled_batches(Row(range(100)), range(100), **options)


def _take(batches, count):
    return [next(batches) for _ in range(count)]


def _children():
    return {child.pid: child for child in multiprocessing.active_children() if child.name.startswith("input worker")}


def test_a_worker_killed_at_any_moment_is_noticed_within_seconds():
    rng = np.random.default_rng()  # a moment cannot be repeated anyway
    with _with_workers(rules=FaultRules(timeout=120.0)) as batches:
        _take(batches, int(rng.integers(1, 5)))
        victim = sorted(_children())[int(rng.integers(2))]
        time.sleep(rng.uniform(0, 0.02))
        os.kill(victim, signal.SIGKILL)
        began = time.perf_counter()
        with pytest.raises(DataError, match=r"Input worker [12] of 2 has ended \(exit code -9\)"):
            _take(batches, 1_000)
        assert time.perf_counter() - began < 10
    assert not _children()


def test_a_frozen_worker_is_named_and_ended():
    with _with_workers() as batches:
        next(batches)
        batches._timeout = 1.0  # after the slow start of the processes
        victim = max(_children())
        os.kill(victim, signal.SIGSTOP)
        words = rf"No batch within 1 s: waiting for input worker . of 2 \(process {victim}\)"
        with pytest.raises(DataError, match=words):
            _take(batches, 1_000)
        began = time.perf_counter()
    assert time.perf_counter() - began < 5
    assert not _children()


def test_workers_leave_no_files_open():
    def count():
        return len(os.listdir("/proc/self/fd"))

    with _with_workers() as batches:
        _take(batches, 4)
        before = count()
        for _ in range(100):
            batch = next(batches)
        assert count() <= before + 2
        batch["image"][:] = 1  # the memory is the batch's own
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_a_slow_batch_may_be_asked_for_again():
    rows, release = [], multiprocessing.get_context("spawn").Event()

    def slow(index, rng):
        release.wait()
        rows.append(index)
        return {"index": np.int64(index)}

    rules = FaultRules(timeout=0.2)
    with shuffled_batches(slow, range(4), batch_size=2, seed=0, start_step=0, num_threads=0, rules=rules) as batches:
        with pytest.raises(DataError, match=r"No batch within 0\.2 s: waiting for 1 thread.* to read from its source"):
            next(batches)
        release.set()
        batches._timeout = 60.0
        assert next(batches)["index"].tolist() == rows


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("hanging threads", "No batch within 2 s: waiting for 1 thread(s) of this process to read from /mnt/gone"),
        ("hanging workers", "No batch within 2 s: waiting for input worker "),
        ("frozen", "No batch within 2 s: waiting for input worker "),
        ("clean", "20 more"),
    ],
)
def test_the_process_ends_whatever_its_input_does(mode, said):
    script = pathlib.Path(__file__).parents[2] / "helpers" / "stuck_input.py"
    process = subprocess.Popen(
        [sys.executable, str(script), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(script.parents[2])},
    )
    try:
        assert process.stdout.readline().startswith(said)
        began = time.perf_counter()
        _, errors = process.communicate(timeout=20)
        assert time.perf_counter() - began < 10
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert "leaked" not in errors
    assert "Traceback" not in errors
