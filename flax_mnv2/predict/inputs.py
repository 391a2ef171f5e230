"""What a user names on the command line → image files, and names for what is written about them."""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
import pathlib
from collections.abc import Sequence

from flax_mnv2.files import files_below
from flax_mnv2.image_processing.reading import IMAGE_SUFFIXES

UNREADABLE = {  # images by their names, and what no reader here makes of them
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"), "a camera's raw format"),
    **dict.fromkeys((".svg", ".svgz"), "SVG"),
    ".jxl": "JPEG XL",
    ".psd": "Photoshop",
    ".eps": "EPS",
    ".ico": "ICO",
    ".tga": "TGA",
    ".exr": "OpenEXR",
}


@dataclasses.dataclass
class Found:
    """What names on a command line stand for.

    Attributes:
      files: each once.
      failures: name and reason of what should have led to an image and does not.
      passed_over: how many files of folders have other endings than images, by ending ("" for none).
    """

    files: list[pathlib.Path]
    failures: list[tuple[str, str]]
    passed_over: collections.Counter[str]

    def summary(self) -> str:
        """Returns a line about what was passed over; nothing where that is nothing."""
        count = self.passed_over.total()
        endings = ", ".join(f"{ending or 'no ending'} {number}" for ending, number in self.passed_over.most_common())
        return f"passed over {count} file{'s' * (count > 1)} not named like images: {endings}" if count else ""


def find_images(names: Sequence[str], *, exclude: pathlib.Path | None = None) -> Found:
    """Returns the files behind files, folders and glob patterns.

    A folder stands for all files below it with one of ``IMAGE_SUFFIXES``, sorted; images in formats that are not read
    are failures. Hidden files and folders are passed over, and so is ``exclude``, where earlier results lie, unless it
    is named itself. A pattern stands for what a shell would put in its place, ``**`` included. A file that is named
    itself is taken whatever its suffix.
    """
    found: dict[str, pathlib.Path] = {}
    failures: list[tuple[str, str]] = []
    passed_over: collections.Counter[str] = collections.Counter()
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
            files = [match] if match.is_file() else []
            unreadable = []
            for file in files_below(match, exclude=exclude):
                suffix = file.suffix.lower()
                if suffix in IMAGE_SUFFIXES:
                    files.append(file)
                elif suffix in UNREADABLE:
                    unreadable.append((str(file), f"{UNREADABLE[suffix]} is not read here. Convert it to JPEG or PNG."))
                else:
                    passed_over[suffix] += 1
            if not files and not unreadable:
                failures.append((str(match), _why_nothing(match)))
            failures += unreadable
            for file in files:
                found.setdefault(os.path.abspath(file), file)
    return Found(list(found.values()), failures, passed_over)


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


def _why_nothing(path: pathlib.Path) -> str:
    if not path.is_dir():
        return "not a regular file"
    if not os.access(path, os.R_OK | os.X_OK):
        return "this folder may not be read"
    return f"no image in this folder; looked for {', '.join(IMAGE_SUFFIXES)}"
