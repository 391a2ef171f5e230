"""A local door to JAX's coordination service that stays open when the service is gone.

JAX's client ends the process, with a C++ stack trace, the moment its connection to the service breaks. Behind this
door the connection never breaks, it only falls silent: there is time to say which host has gone.
"""

from __future__ import annotations

import socket
import threading
import time

_CHUNK = 1 << 16
_RETRY_SECONDS = 0.1


class Relay:
    """Listens on a free port of this machine and passes bytes to and from one remote address.

    Attributes:
      address: ``127.0.0.1:PORT``, where clients of this machine connect.
    """

    def __init__(self, host: str, port: int):
        """``host`` and ``port`` are where the bytes go."""
        self._target = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._kept: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def close(self) -> None:
        """Takes no more connections and closes those there are."""
        for opened in (self._listener, *self._kept):
            opened.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._kept.append(inner)
            threading.Thread(target=self._serve, args=(inner,), name="relay", daemon=True).start()

    def _serve(self, inner: socket.socket) -> None:
        """Passes on one connection, once the remote end is there: it may start later than this one."""
        while inner.fileno() >= 0:
            try:
                outer = socket.create_connection(self._target)
                break
            except OSError:
                time.sleep(_RETRY_SECONDS)
        else:
            return  # closed
        self._kept.append(outer)
        for end in (inner, outer):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._pass_on, args=(inner, outer), kwargs={"ends": True}, daemon=True).start()
        self._pass_on(outer, inner, ends=False)

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, *, ends: bool) -> None:
        """Copies until the source ends; ``ends``: then the target is told."""
        try:
            while data := source.recv(_CHUNK):
                target.sendall(data)
            if ends:
                target.shutdown(socket.SHUT_WR)
        except OSError:
            return
