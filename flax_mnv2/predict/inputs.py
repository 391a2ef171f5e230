"""What a user names on the command line → image files, and names for what is written about them."""

from __future__ import annotations

import glob
import os
import pathlib
from collections.abc import Iterator, Sequence

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def find_images(
    names: Sequence[str], *, exclude: pathlib.Path | None = None
) -> tuple[list[pathlib.Path], list[tuple[str, str]]]:
    """Returns the files behind files, folders and glob patterns, each once, and name with reason of what led to none.

    A folder stands for all files below it with one of ``IMAGE_SUFFIXES``, sorted; hidden files and folders are passed
    over, and so is ``exclude``, where earlier results lie, unless it is named itself. A pattern stands for what a shell
    would put in its place, ``**`` included. A file that is named itself is taken whatever its suffix.
    """
    found: dict[str, pathlib.Path] = {}
    failures = []
    exclude = None if exclude is None else exclude.resolve()
    for name in names:
        name = os.path.expanduser(name)
        if os.path.exists(name):  # first, as a file's own name may look like a pattern
            matches = [pathlib.Path(name)]
        else:
            matches = sorted(map(pathlib.Path, glob.glob(name, recursive=True)))
            if not matches:
                what = "no file matches this pattern" if glob.has_magic(name) else "no such file or folder"
                failures.append((name, what))
        for match in matches:
            files = list(_files(match, exclude))
            if not files:
                failures.append((str(match), _why_nothing(match)))
            for file in files:
                found.setdefault(os.path.abspath(file), file)
    return list(found.values()), failures


def result_stems(files: Sequence[pathlib.Path], folder: pathlib.Path, endings: Sequence[str]) -> list[str]:
    """Returns a name per file for what is written about it: its stem, or the stem with ``_2``, ``_3``, ….

    A number is added where stems repeat (without regard to case, as some file systems compare), and where a result in
    ``folder``, the stem with one of the ``endings``, would take the place of one of the files themselves.
    """
    taken: set[str] = set()
    sources = {os.path.abspath(file).casefold() for file in files}
    stems = []
    for file in files:
        stem, number = file.stem, 1
        while stem.casefold() in taken or any(
            os.path.abspath(folder / f"{stem}{ending}").casefold() in sources for ending in endings
        ):
            number += 1
            stem = f"{file.stem}_{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _files(path: pathlib.Path, exclude: pathlib.Path | None) -> Iterator[pathlib.Path]:
    if path.is_file():
        yield path
    for root, folders, names in os.walk(path):
        here = pathlib.Path(root)
        folders[:] = sorted(
            folder for folder in folders if not folder.startswith(".") and (here / folder).resolve() != exclude
        )
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield here / name


def _why_nothing(path: pathlib.Path) -> str:
    if not path.is_dir():
        return "not a regular file"
    if not os.access(path, os.R_OK | os.X_OK):
        return "this folder may not be read"
    return f"no image in this folder; looked for {', '.join(IMAGE_SUFFIXES)}"
