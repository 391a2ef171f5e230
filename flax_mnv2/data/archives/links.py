"""Links inside an archive: followed within it, as unpacking it would, and refused where they lead anywhere else."""

import posixpath
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from flax_mnv2.data.archives.tree import usable_name
from flax_mnv2.errors import DataError

_OUTSIDE = "which leads outside of the archive"
_PACK_AGAIN = "Pack it again with the files themselves (tar --dereference --hard-dereference; zip without --symlinks)."
_MOST_STEPS = 40  # from link to link, as Linux counts them


def target_of(path: Path, link: str, text: str, *, symbolic: bool) -> str:
    """Returns the name that a link says: of a symbolic one relative to its folder, of a hard one to the archive.

    A DataError where that is outside of the archive at ``path``.
    """
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(link) if symbolic else "", text))
    if inside == ".":
        return ""
    target = usable_name(path, inside)
    if target is None:
        raise DataError(f"{path}: {link} is a link to {text[:80]!a}, {_OUTSIDE}. {_PACK_AGAIN}")
    return target


def follow(path: Path, links: Mapping[str, str], names: Iterable[str], folders: Iterable[str]) -> dict[str, str]:
    """Returns the name of a plain file, one of ``names``, by every name that links give it.

    ``folders`` are those that may be empty; ``links`` has ``target_of`` by link. A link to a folder gives a name to
    every file in it, unless it leads back up, where nothing is new. A DataError where a link leads nowhere, or to a
    folder that holds such links itself.
    """
    files = set(names)
    folders = {"", *folders, *(str(parent) for name in (*files, *links) for parent in PurePosixPath(name).parents)}
    found: dict[str, str] = {}
    trees: dict[str, str] = {}
    for link, target in links.items():
        real = _real(links, target)
        if real in files:
            found[link] = real
        elif real not in folders:
            raise DataError(f"{path}: {link} is a link to {target[:80]!a}, which is not in the archive. {_PACK_AGAIN}")
        elif real and not f"{link}/".startswith(f"{real}/"):
            trees[link] = real
    every = {**{name: name for name in files}, **found}
    below: dict[str, str] = {}
    for link, real in trees.items():
        inner = next((other for other in trees if other.startswith(f"{real}/")), None)
        if inner:
            raise DataError(f"{path}: {link} is a link to a folder that holds another, {inner}. {_PACK_AGAIN}")
        for name, source in every.items():
            if name.startswith(f"{real}/"):
                below[link + name[len(real) :]] = source
    return found | below


def _real(links: Mapping[str, str], name: str) -> str:
    """Returns where a name leads when all links on its way are followed; one that leads in a circle stays a link."""
    for _ in range(_MOST_STEPS):
        way = [name, *(str(parent) for parent in PurePosixPath(name).parents)]
        link = next((part for part in way if part in links), None)
        if link is None:
            break
        name = posixpath.join(links[link], name[len(link) :].lstrip("/")).rstrip("/")
    return name
