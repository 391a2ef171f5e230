"""Several archives as one tree of files."""

import os
from collections.abc import Sequence
from pathlib import Path

from flax_mnv2.data.archives.archive import open_tree
from flax_mnv2.data.archives.tree import FileTree


class JoinedTree(FileTree):
    """The files of several folders and archives; where two have the same name, the first one's is read."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths
        super().__init__(Path(os.path.commonpath(paths)), lambda _: True)

    def _list(self) -> None:
        for path in self._paths:
            tree = self._open.enter_context(open_tree(path))
            self._folders.update(tree.folders())
            for name in tree.names():
                self._files.setdefault(name, tree)

    def read(self, name: str) -> bytes:
        """See ``FileTree``."""
        return self._files[name].read(name)
