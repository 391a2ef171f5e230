"""VOC archives with bytes, headers, names, lists and pictures changed: read as they are, or refused by a DataError.

The cases follow from a seed in the code; the soak runs more of them than ``make test``.
"""

import collections
import contextlib
import io
import struct
import tarfile
import warnings
import zipfile

import hypothesis
import pytest
import voc_archives
from fuzzing import CHARACTERS, cases
from hypothesis import strategies as st

from flax_mnv2.data.archives.archive import open_tree
from flax_mnv2.data.datasets.examples import checked_mask
from flax_mnv2.data.datasets.voc_files import VocFiles
from flax_mnv2.data.labels.masks import MaskRule
from flax_mnv2.data.labels.names import LabelNames
from flax_mnv2.errors import DataError

CASES = cases(2000)
RULE = MaskRule(labels=LabelNames(("x", "y", "z")), ignore_label=255)
FILES = {
    f"V/{folder}": data
    for folder, data in {
        "ImageSets/Segmentation/train.txt": b"a\nb\n",
        "JPEGImages/a.jpg": voc_archives.jpeg(8, 9),
        "JPEGImages/b.jpg": voc_archives.jpeg(9, 8),
        "SegmentationClass/a.png": voc_archives.palette_png(voc_archives.mask_array(8, 9)),
        "SegmentationClass/b.png": voc_archives.palette_png(voc_archives.mask_array(9, 8)),
    }.items()
}

places = st.integers(0, 2**16 - 1)  # of a byte, as a fraction of the whole
octets = st.integers(0, 255)
indices = st.integers(0, len(FILES) - 1)
sizes = st.sampled_from([-1, -512, 0, 1, 512, 2**20, 2**33, 2**62]) | st.integers(0, 5000)
numbers = st.sampled_from([0, 1, 2, 511, 512, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(
    0, 2**32 - 1
)
names = st.sampled_from(
    ["", ".", "..", "/", "../x", "/etc/passwd", "a\0b", "a\nb", "\x1b[2J", "V/JPEGImages/a.jpg",
     "V/JPEGImages/../a.jpg", "V/ImageSets/Segmentation/val.txt", "V/ImageSets/Segmentation/../x.txt",
     "V/SegmentationClass", "ü" * 50, "x/" * 49]
) | st.text(CHARACTERS, max_size=60)  # fmt: skip
lists = st.sampled_from(
    [b"", b"../a\n", b"/a\n", b"a\na\n", b"a\0\n", b"\xff\xfe", b"a b\n", b"c\n", b"\n\n", b"a\n" * 500, b"x" * 5000]
) | st.binary(max_size=40)  # fmt: skip
contents = st.one_of(  # what is changed before packing
    st.tuples(st.just("list"), lists),
    st.tuples(st.just("damage"), indices, places, octets),
    st.tuples(st.just("shorten"), indices, places),
    st.tuples(st.just("exchange"), indices, indices),
    st.tuples(st.just("drop"), indices),
)
packed = st.one_of(  # what is changed afterwards
    st.tuples(st.just("byte"), places, octets),
    st.tuples(st.just("cut"), places),
    st.tuples(st.just("move"), places, places, st.integers(1, 600)),
)
tar_headers = st.one_of(
    st.tuples(st.just("name"), indices, names),
    st.tuples(st.just("kind"), indices, st.sampled_from(b"01234567LKxgXSDMV\0\xff")),
    st.tuples(st.just("size"), indices, sizes),
    st.tuples(st.just("header byte"), indices, st.integers(0, 511), octets),
    st.tuples(st.just("pax"), indices, st.sampled_from(["path", "size", "GNU.sparse.map", "uid"]), names),
)  # fmt: skip
zip_fields = st.one_of(
    st.tuples(st.just("name"), indices, names),
    st.tuples(st.just("line"), indices, st.integers(4, 45), numbers),
    st.tuples(st.just("local"), indices, st.integers(4, 29), numbers),
    st.tuples(st.just("end"), st.integers(4, 21), numbers),
)


def changed_files(changes):
    """(name, contents) of every member, after the changes that concern them."""
    members = [list(item) for item in FILES.items()]
    for kind, *details in changes:
        if kind == "list":
            members[0][1] = details[0]
        elif kind == "damage":
            index, place, octet = details
            data = bytearray(members[index][1])
            if data:
                data[place * len(data) >> 16] = octet
            members[index][1] = bytes(data)
        elif kind == "shorten":
            index, place = details
            members[index][1] = members[index][1][: place * len(members[index][1]) >> 16]
        elif kind == "exchange":
            one, other = details
            members[one][1], members[other][1] = members[other][1], members[one][1]
        elif kind == "name":
            members[details[0]][0] = details[1]
    dropped = {details[0] for kind, *details in changes if kind == "drop"}
    return [(index, name, data) for index, (name, data) in enumerate(members) if index not in dropped]


def tar_bytes(changes):
    """A tar whose headers are changed and have right checksums all the same."""
    result = bytearray()
    for index, name, data in changed_files(changes):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for kind, *details in changes:
            if details[0] == index and kind == "pax":
                member.pax_headers[details[1]] = details[2]
        blocks = bytearray(member.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape"))
        head = memoryview(blocks)[-512:]  # the last block is the member's own
        for kind, *details in changes:
            if details[0] == index and kind == "kind":
                head[156] = details[1]
            elif details[0] == index and kind == "size":
                head[124:136] = tarfile.itn(details[1], 12, tarfile.GNU_FORMAT)
            elif details[0] == index and kind == "header byte":
                head[details[1]] = details[2]
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        result += blocks + data + bytes(-len(data) % 512)
    return result + bytes(1024)


def zip_bytes(changes):
    """A zip with numbers in its headers changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that stand twice
        for _, name, data in changed_files(changes):
            archive.writestr(zipfile.ZipInfo(name or "x"), data)
        lines = {index: info.header_offset for index, info in enumerate(archive.infolist())}
    data = bytearray(buffer.getvalue())
    directory = [match for match in range(len(data)) if data.startswith(b"PK\1\2", match)] if changes else []
    for kind, *details in changes:
        if kind == "line" and details[0] < len(directory):
            place, value = directory[details[0]] + details[1], details[2]
        elif kind == "local" and details[0] in lines:
            place, value = lines[details[0]] + details[1], details[2]
        elif kind == "end":
            place, value = len(data) - 22 + details[0], details[1]
        else:
            continue
        width = 4 if value >> 16 else 2
        data[place : place + width] = struct.pack("<I", value)[:width]
    return data


def changed_bytes(data, changes):
    for kind, *details in changes:
        if kind == "byte" and data:
            data[details[0] * len(data) >> 16] = details[1]
        elif kind == "cut":
            del data[details[0] * len(data) >> 16 :]
        elif kind == "move":
            start, end = (place * len(data) >> 16 for place in details[:2])
            data[end : end + details[2]] = data[start : start + details[2]]
    return bytes(data)


def outcome(path):
    """Use all that a data set's builder would use; how far it came."""
    try:
        with VocFiles(path) as voc:
            ids = [image_id for listed in voc.splits().values() for image_id in listed]
            wrong = 0
            for image_id in ids:
                try:
                    image, mask = voc.read_image(image_id), voc.read_mask(image_id)
                    mask = checked_mask(
                        image=image,
                        image_name=voc.image_name(image_id),
                        mask=mask,
                        mask_name=voc.mask_name(image_id),
                        rule=RULE,
                    )
                    assert mask.ndim == 2
                except DataError:
                    wrong += 1
            return "an example refused" if wrong else "read"
    except DataError:
        return "refused"


def check_names(path):
    """Every name that a tree gives stays inside, and can be printed on one line and read."""
    try:
        tree = open_tree(path)
    except DataError:
        return
    with contextlib.closing(tree):
        for name in tree.names() + tree.folders():
            assert not name.startswith("/")
            assert ".." not in name.split("/")
            assert len(name.splitlines()) == 1
        for name in tree.names():
            with contextlib.suppress(DataError):
                assert len(tree.read(name)) < 100_000


@pytest.mark.parametrize(
    ("make", "headers"), [(tar_bytes, tar_headers), (zip_bytes, zip_fields)], ids=["x.tar", "x.zip"]
)
def test_changed_voc_archives(tmp_path, make, headers, request):
    path = tmp_path / request.node.callspec.id
    path.write_bytes(make([]))
    assert outcome(path) == "read"
    outcomes = collections.Counter()

    @CASES
    @hypothesis.seed(0)
    @hypothesis.given(before=st.lists(contents | headers, max_size=2), after=st.lists(packed, max_size=1))
    def run(before, after):
        path.write_bytes(changed_bytes(bytearray(make(before)), after))
        check_names(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large pictures
            outcomes[outcome(path)] += 1

    run()
    assert outcomes.total() >= CASES.max_examples
    assert min(outcomes[kind] for kind in ("read", "an example refused", "refused")) > CASES.max_examples / 20, outcomes
