"""Links in archives and folders: the files that they lead to, and those that lead nowhere or outside."""

import io
import os
import tarfile
import zipfile

import pytest

from flax_mnv2.data.archives.archive import identity, open_tree
from flax_mnv2.errors import DataError

FILES = {"photos/a.jpg": b"a", "photos/more/b.jpg": b"b"}
SYMBOLIC = {
    "train/cat/a.jpg": "../../photos/a.jpg",
    "train/cat/again.jpg": "a.jpg",  # through another link
    "train/dog": "../photos/more",
    "val": "./train/dog",
}
LINKED = {"train/cat/a.jpg": b"a", "train/cat/again.jpg": b"a", "train/dog/b.jpg": b"b", "val/b.jpg": b"b"}


def _tar(path, files, links, kind=tarfile.SYMTYPE):
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def _zip(path, files, links):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for name, target in links.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, target)
    return path


def _folder(path, files, links):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    for name, target in links.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).symlink_to(target)
    return path


def _contents(path, keep=lambda _: True):
    with open_tree(path, keep=keep) as tree:
        assert tree.repeated() == []
        return {name: tree.read(name) for name in tree.names()}


@pytest.mark.parametrize(("write", "kind"), [(_tar, "x.tar"), (_tar, "x.tgz"), (_zip, "x.zip")])
def test_symbolic_links_are_the_files_they_lead_to(tmp_path, write, kind):
    path = write(tmp_path / kind, FILES, SYMBOLIC)
    assert _contents(path) == FILES | LINKED
    assert _contents(path, keep=lambda name: name.startswith("train/")) == {
        name: data for name, data in LINKED.items() if name.startswith("train/")
    }  # though what they lead to is not kept


@pytest.mark.parametrize("kind", ["x.tar", "x.tgz"])
def test_hard_links(tmp_path, kind):
    """As tar writes a file that it has packed already, under another name."""
    source = _folder(tmp_path / "source", FILES, {})
    (source / "train").mkdir()
    os.link(source / "photos" / "a.jpg", source / "train" / "z.jpg")
    path = tmp_path / kind
    with tarfile.open(path, "w:gz" if kind == "x.tgz" else "w") as archive:
        archive.add(source, ".")
        assert any(member.islnk() for member in archive.getmembers())
    assert _contents(path) == FILES | {"train/z.jpg": b"a"}
    assert _contents(path, keep=lambda name: "train" in name) == {"train/z.jpg": b"a"}


def test_links_that_lead_back_up_bring_nothing_new(tmp_path):
    loops = {"photos/up": "..", "photos/here": ".", "photos/more/top": "../.."}
    assert _contents(_tar(tmp_path / "x.tar", FILES, loops)) == FILES
    assert _contents(_zip(tmp_path / "x.zip", FILES, loops)) == FILES


OUTWARD = ["/etc/passwd", "../../etc/passwd", "photos/../../up", ".."]


@pytest.mark.parametrize("target", OUTWARD)
@pytest.mark.parametrize(
    ("write", "options", "kind"),
    [(_tar, {}, "x.tar"), (_tar, {}, "x.tgz"), (_tar, {"kind": tarfile.LNKTYPE}, "x.tar"), (_zip, {}, "x.zip")],
)
def test_links_outside_are_refused_by_name(tmp_path, write, options, kind, target):
    path = write(tmp_path / kind, FILES, {"cat.jpg": target}, **options)
    with pytest.raises(DataError, match=r"cat\.jpg is a link to .*outside of the archive. Pack it again"):
        open_tree(path)


@pytest.mark.parametrize("links", [{"cat.jpg": "gone.jpg"}, {"cat.jpg": "b", "b": "c", "c": "b"}])
@pytest.mark.parametrize(("write", "kind"), [(_tar, "x.tar"), (_zip, "x.zip")])
def test_links_to_nothing_are_refused_by_name(tmp_path, write, kind, links):
    with pytest.raises(DataError, match=r"cat\.jpg is a link to .*not in the archive"):
        open_tree(write(tmp_path / kind, FILES, links))


def test_a_link_to_a_folder_of_links_to_folders(tmp_path):
    path = _tar(tmp_path / "x.tar", FILES, {"train/dog": "../photos/more", "all": "train"})
    with pytest.raises(DataError, match="all is a link to a folder that holds another, train/dog"):
        open_tree(path)


def test_a_file_behind_a_link_outside(tmp_path):
    """The classic way out of a target: a link to a folder outside, then a member below the link's name."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(DataError, match="way is a link to"):
        open_tree(_tar(tmp_path / "x.tar", {"way/out": b"no"}, {"way": str(outside)}))
    assert list(outside.iterdir()) == []


def test_links_in_a_folder(tmp_path):
    """They are followed anywhere, as it is the user's own disk; what they lead to and is gone is named."""
    elsewhere = _folder(tmp_path / "elsewhere", FILES, {})
    folder = _folder(tmp_path / "folder", {}, {"cat": elsewhere / "photos", "dog.jpg": elsewhere / "photos" / "a.jpg"})
    assert _contents(folder) == {"cat/a.jpg": b"a", "cat/more/b.jpg": b"b", "dog.jpg": b"a"}
    (folder / "cat2").symlink_to(elsewhere / "photos")  # the same folder by another name
    (elsewhere / "photos" / "loop").symlink_to(folder)
    assert _contents(folder, keep=lambda name: name.startswith("cat2")) == {"cat2/a.jpg": b"a", "cat2/more/b.jpg": b"b"}
    (elsewhere / "photos" / "a.jpg").unlink()
    for act in (open_tree, identity):
        with pytest.raises(DataError, match=r"dog\.jpg is a link to .*not there. Restore"):
            act(folder)
