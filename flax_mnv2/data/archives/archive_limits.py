"""How much an archive may claim before it is taken for damaged or hostile: far above any data set of images.

Every claim is checked before what it claims is read. The largest archives that these limits were chosen by: ImageNet's
``ILSVRC2012_img_train.tar``, 138 GB, whose 1000 members are tars of up to 1300 images (under 0.5 GB each); the same
unpacked and packed again as one zip, 1.5 million names of some 50 bytes; VOC 2012, 2 GB.
"""

import re
from pathlib import Path

from flax_mnv2.errors import DataError

MAX_MEMBERS = 4_000_000  # headers of any kind; three times ImageNet. An index of so many names takes 1 GB of memory
MAX_NAMES_BYTES = 1 << 29  # all names together
MAX_NAME_BYTES = 1024
MAX_DEPTH = 64  # folders within folders
MAX_MEMBER_BYTES = 1 << 30  # one member, which is read into memory as a whole
MAX_TOTAL_BYTES = 1 << 40  # all members that are of interest
MAX_LIST_BYTES = 1 << 26  # a text file of ids: 64 MiB are some four million
MAX_HEADER_BYTES = 1 << 20  # what precedes a tar's member to say its long name, which is held in memory
MAX_ZIP_DIRECTORY_BYTES = 1 << 29  # the list at the end of a zip, which is held in memory
# Image files do not shrink; text, empty members and a tar's padding do, up to 1:20 in sets of tiny pictures. A bomb of
# zeros has 1:1000 in gzip and zip, more in bzip2 and xz. Small archives may have any ratio: they cannot do harm.
MAX_RATIO, ANY_RATIO_BYTES = 200, 1 << 26
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Tally:
    """Counts what an archive lists, and refuses it where that is too much.

    Args:
      path: the archive, or what messages call it.
    """

    def __init__(self, path: Path | str):
        self._path = path
        self._headers = self._names_bytes = self._total_bytes = 0

    def header(self, name: str = "") -> None:
        """Count a member of any kind.

        Raises:
          DataError: there are too many, or their names are too long together.
        """
        self._headers += 1
        self._names_bytes += len(name)
        self._refuse_above(MAX_MEMBERS, self._headers, "members")
        self._refuse_above(MAX_NAMES_BYTES, self._names_bytes, "bytes of names")

    def file(self, name: str, size: int) -> None:
        """Count a plain file that is going to be used.

        Raises:
          DataError: its name or size is beyond the limits, or the sum of sizes is.
        """
        check_name(self._path, name)
        check_size(self._path, name, size)
        self._total_bytes += size
        self._refuse_above(MAX_TOTAL_BYTES, self._total_bytes, "bytes of files")

    def _refuse_above(self, limit: int, found: int, what: str) -> None:
        if found > limit:
            raise DataError(
                f"{self._path} holds more than {limit:,} {what}, which is beyond any data set this library knows. "
                "Check where it comes from; unpack a larger one yourself, and give its folder."
            )


def check_name(path: Path | str, name: str) -> None:
    """Refuse names that would garble messages and lists, or that no file system takes.

    Raises:
      DataError: a control character, too long, or too deep.
    """
    if _CONTROL.search(name):
        reason = "has control characters or line ends in its name"
    elif len(name) > MAX_NAME_BYTES:
        reason = f"has a name of {len(name):,} characters, expected at most {MAX_NAME_BYTES:,}"
    elif name.count("/") >= MAX_DEPTH:
        reason = f"lies {name.count('/')} folders deep, expected fewer than {MAX_DEPTH}"
    else:
        return
    raise DataError(
        f"{path}: the member {name[:80]!a}{'…' if len(name) > 80 else ''} {reason}. Rename it and pack again."
    )


def check_size(path: Path | str, name: str, size: int, limit: int = MAX_MEMBER_BYTES) -> None:
    """Refuse a file that is too large to be read into memory.

    Raises:
      DataError: it has more than ``limit`` bytes.
    """
    if size > limit:
        raise DataError(
            f"{path}: {name} has {size:,} bytes, expected at most {limit:,} for such a file. "
            "Check where it comes from, and remove or replace it."
        )


def check_ratio(path: Path | str, unpacked: int, packed: int) -> None:
    """Refuse a decompression bomb.

    Raises:
      DataError: ``packed`` bytes have become more than ``MAX_RATIO`` times as many.
    """
    if unpacked > max(ANY_RATIO_BYTES, MAX_RATIO * packed):
        raise DataError(
            f"{path} unpacks to more than {MAX_RATIO} times its {packed:,} bytes. Archives of images do not: it is "
            "made to fill disks (a decompression bomb), or holds something else. Check where it comes from."
        )
