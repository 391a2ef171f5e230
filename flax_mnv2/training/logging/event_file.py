"""Scalars for TensorBoard, written where they are asked for.

tensorboardX's own ``SummaryWriter`` hands events to a thread through a queue of ten: when the disk is full the thread
dies, and the eleventh event waits without end.
"""

import os
import pathlib
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class EventFile:
    """One new event file in a folder."""

    def __init__(self, folder: pathlib.Path, *, purge_step: int):
        """Makes the file; TensorBoard then hides what older files of the folder have from ``purge_step`` on."""
        folder.mkdir(exist_ok=True)
        # Files of one second and machine would have the same name.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{purge_step}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(step=purge_step, wall_time=time.time(), session_log=start))
        self._writer.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by tag; what an OSError left out is written with the next call."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer.write_event(Event(step=step, wall_time=time.time(), summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
