"""A batch from one process to another through memory that has no name.

The sender writes the arrays to an anonymous file and hands over its descriptor; the receiver maps it. Nothing is copied
on its side, ``/dev/shm`` is not used (containers often make it 64 MB), and whoever is killed at whatever moment, the
kernel frees the memory with the last descriptor.
"""

import mmap
import os
import pickle
import socket
import struct
import tempfile
import time
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]

_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 64  # bytes; with it JAX can take an array over without copying it


def send_batch(connection: socket.socket, batch: Batch) -> None:
    """Sends a batch, whose arrays have no objects in them."""
    fields, offset, descriptor = [], 0, _anonymous_file()
    try:
        for name, array in batch.items():
            array = np.ascontiguousarray(array)
            fields.append((name, array.shape, array.dtype.str, offset))
            if array.nbytes:
                _write(descriptor, memoryview(array.reshape(-1).view(np.uint8)), offset)
            offset = -(-(offset + array.nbytes) // _ALIGNMENT) * _ALIGNMENT
        os.ftruncate(descriptor, max(offset, 1))
        _send(connection, ("batch", fields), descriptor)
    finally:
        os.close(descriptor)


def send_error(connection: socket.socket, error: BaseException) -> None:
    """Sends an exception; one that cannot be pickled as a RuntimeError of its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of what kind, its class decides
        error = RuntimeError(f"{type(error).__name__}: {error}")
    _send(connection, ("error", error), None)


def receive(connection: socket.socket, timeout: float) -> tuple[str, Any]:
    """``("batch", Batch)`` or ``("error", exception)``, whatever was sent next.

    Raises:
      TimeoutError: not all of it came within ``timeout`` seconds.
      EOFError: the other side is gone.
    """
    deadline = time.monotonic() + timeout
    _limit(connection, deadline)
    start, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 1)
    try:
        start += _read(connection, _LENGTH.size - len(start), deadline)
        kind, content = pickle.loads(_read(connection, _LENGTH.unpack(start)[0], deadline))
        return kind, _mapped(descriptors[0], content) if kind == "batch" else content
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _mapped(descriptor: int, fields: list[tuple[str, tuple[int, ...], str, int]]) -> Batch:
    memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
    return {name: np.ndarray(shape, dtype, memory, offset) for name, shape, dtype, offset in fields}


def _send(connection: socket.socket, message: tuple[str, Any], descriptor: int | None) -> None:
    data = pickle.dumps(message)
    length = _LENGTH.pack(len(data))
    if descriptor is None:
        connection.sendall(length)
    else:
        socket.send_fds(connection, [length], [descriptor])
    connection.sendall(data)


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        _limit(connection, deadline)
        part = connection.recv(count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _limit(connection: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
