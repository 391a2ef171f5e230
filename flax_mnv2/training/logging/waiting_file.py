"""A file on a disk that may be full for a while."""

import pathlib


class WaitingFile:
    """Takes bytes and writes them in order; what an OSError left out waits for the next ``flush``.

    Python's own buffers drop what does not fit them while the disk is full. ``mode`` is ``"wb"`` or ``"ab"``.
    """

    def __init__(self, path: pathlib.Path, mode: str):
        self._file = path.open(mode, buffering=0)
        self._waiting = bytearray()

    def add(self, content: bytes) -> None:
        """Takes what the next ``flush`` writes."""
        self._waiting += content

    def flush(self) -> None:
        """Writes all that waits."""
        while self._waiting:
            del self._waiting[: self._file.write(self._waiting)]

    def close(self) -> None:
        """Closes the file, with what is left to write."""
        try:
            self.flush()
        finally:
            self._file.close()
