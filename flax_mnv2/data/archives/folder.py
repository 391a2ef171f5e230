"""A folder as a tree of files. Links are followed, as people link their data sets together."""

import os
from pathlib import Path

from flax_mnv2.data.archives.tree import FileTree, check_size, open_regular, usable_name
from flax_mnv2.errors import DataError


class FolderTree(FileTree):
    """The files below a folder; what may not be listed is passed over, and pipes and devices are absent."""

    def _list(self) -> None:
        visited = set()
        for folder, subfolders, files in os.walk(self.path, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:  # a link that leads back up
                subfolders.clear()
                continue
            visited.add(real)
            prefix = Path(folder).relative_to(self.path)
            if prefix.parts:
                self._folders.add(prefix.as_posix())
            for file in files:
                name = usable_name(self.path, (prefix / file).as_posix())
                if name and self._keep(name) and os.path.isfile(os.path.join(folder, file)):
                    self._add_file(name, self.path / name)

    def read(self, name: str) -> bytes:
        """See ``FileTree``."""
        path = self._files[name]
        try:
            with open_regular(path) as file:
                check_size(self.path, name, os.fstat(file.fileno()).st_size)
                return file.read()
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror}.") from error
