"""Scalars for TensorBoard, written where they are asked for.

An event file is a TFRecord file of protocol buffers (tensorflow/core/util/event.proto). The few fields that scalars
need are encoded here: tensorboardX imports PyTorch where that is installed, two seconds of every start, and its
``SummaryWriter`` waits without end once the disk is full.
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

import numpy as np

from flax_mnv2.data.archives.tfrecord import make_record
from flax_mnv2.training.logging.waiting_file import WaitingFile

_FILE_VERSION, _SUMMARY, _SESSION_LOG = 3, 5, 7  # fields of an Event
_VALUE, _TAG = 1, 1  # fields of a Summary, and of a Value in it
_SESSION_START = b"\x08\x01"  # a SessionLog with the status START


class EventFile(WaitingFile):
    """One new event file in a folder."""

    def __init__(self, folder: pathlib.Path, *, purge_step: int):
        """Makes the file; TensorBoard then hides what older files of the folder have from ``purge_step`` on."""
        folder.mkdir(exist_ok=True)
        # Files of one second and machine would have the same name without the rest.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{purge_step}"
        super().__init__(folder / name, "wb")
        self.add(_event(0, _field(_FILE_VERSION, b"brain.Event:2")))
        self.add(_event(purge_step, _field(_SESSION_LOG, _SESSION_START)))
        self.flush()

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes scalars by tag."""
        scalars = [_field(_VALUE, _scalar(tag, value)) for tag, value in values.items()]
        self.add(_event(step, _field(_SUMMARY, b"".join(scalars))))


def _event(step: int, field: bytes) -> bytes:
    return make_record(struct.pack("<Bd", 0x09, time.time()) + b"\x10" + _varint(step) + field)


def _scalar(tag: str, value: float) -> bytes:
    return _field(_TAG, tag.encode()) + b"\x15" + np.float32(value).tobytes()


def _field(number: int, content: bytes) -> bytes:
    """A field whose length is written before it: text or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """A number from 0 on, seven bits to a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(encoded) + bytes([number])
