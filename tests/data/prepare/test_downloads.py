"""Downloads from a server that cuts, errs, redirects and refuses: only the right file ever gets its name."""

import dataclasses
import hashlib
import http.server
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from flax_mnv2.data.prepare import download
from flax_mnv2.data.prepare.download import OfficialFile, obtain
from flax_mnv2.errors import DataError

CONTENTS = np.random.default_rng(0).bytes(300_000)
SIZE, HALF = len(CONTENTS), 150_000


class Server:
    """Answers each path by a function of the handler; keeps the requests."""

    def __init__(self):
        self.answers, self.requests = {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.close_connection = True
                outer.requests.append((self.path, self.headers.get("Range"), dict(self.headers)))
                outer.answers[self.path](self)

            def start(self):
                match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                return int(match[1]) if match else 0

            def head(self, status, **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.send_header("Connection", "close")
                self.end_headers()

            def give(self, contents, *, upto=None, ranges=True):
                """The file, from where it is asked for; ``upto`` cuts the connection there."""
                start = self.start() if ranges else 0
                if start:
                    whole = f"bytes {start}-{len(contents) - 1}/{len(contents)}"
                    self.head(206, Content_Length=len(contents) - start, Content_Range=whole)
                else:
                    self.head(200, Content_Length=len(contents))
                self.wfile.write(contents[start:upto])

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def ranges(self, path):
        """The Range headers of the requests for a path, in order."""
        return [wanted for asked, wanted, _ in self.requests if asked == path]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "_BACKOFF_SECONDS", 0.001)
    running = Server()
    yield running
    running.close()


@pytest.fixture
def offered(server):
    """The file as offered at some paths of the server."""

    def make(*paths, size=SIZE):
        return OfficialFile(
            name="x.tar",
            urls=tuple(server.address + path for path in paths),
            size=size,
            size_text="300,000 bytes",
            algorithm="sha256",
            digest=hashlib.sha256(CONTENTS).hexdigest(),
        )

    return make


def whole(handler):
    handler.give(CONTENTS)


def part_path(folder, file):
    return folder / f"{file.name}.{file.digest[:12]}.part"


def check(path, folder):
    assert path == folder / "x.tar"
    assert path.read_bytes() == CONTENTS
    assert [entry.name for entry in folder.iterdir()] == ["x.tar"]


@pytest.mark.parametrize("size", [len(CONTENTS), None])
def test_goes_on_from_a_partial_file(server, offered, tmp_path, size):
    server.answers["/x"] = whole
    file = offered("/x", size=size)
    part_path(tmp_path, file).write_bytes(CONTENTS[:HALF])
    check(obtain(file, places=[], target=tmp_path), tmp_path)
    assert server.ranges("/x") == [f"bytes={HALF}-"]


def test_goes_on_after_each_cut(server, offered, tmp_path):
    server.answers["/x"] = lambda handler: handler.give(CONTENTS, upto=handler.start() + 70_000)
    check(obtain(offered("/x"), places=[], target=tmp_path), tmp_path)
    assert server.ranges("/x") == [None, *(f"bytes={start}-" for start in (70_000, 140_000, 210_000, 280_000))]


def test_the_next_mirror_goes_on(server, offered, tmp_path):
    """The first gives half and then only errors; the second is asked for the other half."""
    server.answers["/a"] = lambda handler: handler.head(503) if handler.start() else handler.give(CONTENTS, upto=HALF)
    server.answers["/b"] = whole
    check(obtain(offered("/a", "/b"), places=[], target=tmp_path), tmp_path)
    assert server.ranges("/b") == [f"bytes={HALF}-"]
    assert len(server.ranges("/a")) == 5


def test_mirrors_in_order(server, offered, tmp_path):
    server.answers |= {"/a": lambda handler: handler.head(404), "/b": whole, "/c": whole}
    check(obtain(offered("/a", "/b", "/c"), places=[], target=tmp_path), tmp_path)
    assert [path for path, _, _ in server.requests] == ["/a", "/b"]


def test_a_busy_server_is_asked_again(server, offered, tmp_path):
    server.answers["/x"] = lambda handler: whole(handler) if len(server.requests) > 2 else handler.head(503)
    check(obtain(offered("/x"), places=[], target=tmp_path), tmp_path)
    assert len(server.requests) == 3


def test_a_server_that_ignores_ranges_starts_over(server, offered, tmp_path):
    server.answers["/x"] = lambda handler: handler.give(CONTENTS, ranges=False)
    file = offered("/x")
    part_path(tmp_path, file).write_bytes(b"?" * HALF)
    check(obtain(file, places=[], target=tmp_path), tmp_path)
    assert server.ranges("/x") == [f"bytes={HALF}-"]


@pytest.mark.parametrize("answer", ["another range", "no range", "416"])
def test_a_refused_or_wrong_range_starts_over(server, offered, tmp_path, answer):
    def reply(handler):
        start = handler.start()
        if not start:
            handler.give(CONTENTS)
        elif answer == "416":
            handler.head(416)
        elif answer == "no range":
            handler.head(206, Content_Length=len(CONTENTS) - start)
        else:
            handler.head(206, Content_Length=len(CONTENTS) - start, Content_Range=f"bytes 7-9/{len(CONTENTS)}")

    server.answers["/x"] = reply
    file = offered("/x")
    part_path(tmp_path, file).write_bytes(CONTENTS[:HALF])
    check(obtain(file, places=[], target=tmp_path), tmp_path)
    assert server.ranges("/x") == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("length", [HALF, len(CONTENTS), len(CONTENTS) + 5])
def test_a_poisoned_partial_file_is_thrown_away(server, offered, tmp_path, length):
    """Its digest comes out wrong, so the same address is asked for all of it; also where it is too long or complete."""
    server.answers["/x"] = whole
    file = offered("/x")
    part_path(tmp_path, file).write_bytes(b"?" * length)
    check(obtain(file, places=[], target=tmp_path), tmp_path)
    assert server.ranges("/x")[-1] is None


def test_a_wrong_file_is_never_kept(server, offered, tmp_path):
    server.answers["/x"] = lambda handler: handler.give(b"?" * len(CONTENTS))
    with pytest.raises(DataError, match=r"not the official file: its sha256 is \w+, expected"):
        obtain(offered("/x"), places=[], target=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


def test_a_file_of_another_size_is_not_even_fetched(server, offered, tmp_path):
    server.answers["/x"] = lambda handler: handler.head(200, Content_Length=10**15)
    with pytest.raises(DataError, match=r"it has 1,000,000,000,000,000 bytes, expected 300,000"):
        obtain(offered("/x"), places=[], target=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_is_given_up(server, offered, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT_SECONDS", (5, 0.1))
    released = threading.Event()
    server.answers |= {"/silent": lambda _: released.wait(30), "/x": whole}
    check(obtain(offered("/silent", "/x"), places=[], target=tmp_path), tmp_path)
    released.set()


@pytest.mark.parametrize(
    ("location", "reason"),
    [("file:///etc/hostname", "InvalidSchema"), ("ftp://127.0.0.1/x", "InvalidSchema"), ("/x", "TooManyRedirects")],
)
def test_redirects_stay_on_http(server, offered, tmp_path, location, reason):
    server.answers["/x"] = lambda handler: handler.head(302, Location=location, Content_Length=0)
    with pytest.raises(DataError, match=reason):
        obtain(offered("/x"), places=[], target=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_honest_redirect_is_followed(server, offered, tmp_path):
    server.answers["/x"] = lambda handler: handler.head(302, Location="/y", Content_Length=0)
    server.answers["/y"] = whole
    check(obtain(offered("/x"), places=[], target=tmp_path), tmp_path)


def test_no_credentials_are_sent(server, offered, tmp_path, monkeypatch):
    """Neither at first nor after a redirect, though ~/.netrc has some for this host."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.answers["/x"] = lambda handler: handler.head(302, Location="/y", Content_Length=0)
    server.answers["/y"] = whole
    obtain(offered("/x"), places=[], target=tmp_path / "data")
    sent = [headers for _, _, headers in server.requests]
    assert len(sent) == 2
    assert all(set(headers) <= {"Host", "User-Agent", "Accept-Encoding", "Accept", "Connection"} for headers in sent)


def test_bytes_are_stored_as_sent(server, offered, tmp_path):
    """Servers that call a .tgz gzip-encoded must not make us unpack it."""
    server.answers["/x"] = lambda handler: (
        handler.head(200, Content_Length=len(CONTENTS), Content_Encoding="gzip"),
        handler.wfile.write(CONTENTS),
    )
    check(obtain(offered("/x"), places=[], target=tmp_path), tmp_path)


def test_all_fail_in_one_message(server, offered, tmp_path):
    server.answers |= {
        "/a": lambda handler: handler.head(404),
        "/b": lambda handler: handler.head(503) if handler.start() else handler.give(CONTENTS, upto=HALF),
    }
    file = offered("/a", "/b")
    file = dataclasses.replace(file, urls=(*file.urls, "http://127.0.0.1:9/x"))
    with pytest.raises(DataError) as caught:
        obtain(file, places=[], target=tmp_path)
    message = str(caught.value)
    for text in ("/a (HTTP 404) or ", "/b (HTTP 503) or ", "127.0.0.1:9/x (ConnectionError)"):
        assert text in message
    for text in ("150,000 bytes of it are kept in", f"put it at {tmp_path / 'x.tar'}", file.digest, file.size_text):
        assert text in message
    assert "\n" not in message
    assert part_path(tmp_path, file).read_bytes() == CONTENTS[:HALF]  # and nothing under the file's name
    assert not (tmp_path / "x.tar").exists()


def test_a_partial_file_of_the_user_is_refused(offered, tmp_path):
    (tmp_path / "x.tar").write_bytes(CONTENTS[:HALF])
    with pytest.raises(DataError, match=r"is not the official x\.tar: it has 150,000 bytes"):
        obtain(offered("/x"), places=[tmp_path / "x.tar"], target=tmp_path)


def test_no_permission_to_write(server, offered, tmp_path):
    server.answers["/x"] = whole
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"Cannot write .*set --config\.data\.data_dir"):
        obtain(offered("/x"), places=[], target=tmp_path / "file" / "inside")


def test_interruption_keeps_the_part_and_says_so(server, offered, tmp_path, monkeypatch, caplog):
    """As Ctrl-C in the middle of writing; the next start goes on."""

    def interrupt(*_):
        raise KeyboardInterrupt

    server.answers["/x"] = lambda handler: handler.give(CONTENTS, upto=HALF)
    file = offered("/x")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="absl"):
        patch.setattr(download.time, "sleep", interrupt)  # the pause after the cut
        with pytest.raises(KeyboardInterrupt):
            obtain(file, places=[], target=tmp_path)
    assert "Interrupted. 150,000 bytes of it are kept in" in caplog.text
    server.answers["/x"] = whole
    check(obtain(file, places=[], target=tmp_path), tmp_path)
    assert server.ranges("/x") == [None, f"bytes={HALF}-"]


def test_a_killed_download_goes_on(server, offered, tmp_path):
    """A process that is killed with half the file written leaves nothing that is taken for whole."""
    arrived = threading.Event()

    def hang(handler):
        handler.give(CONTENTS, upto=HALF)
        handler.wfile.flush()
        arrived.set()
        time.sleep(30)

    server.answers["/x"] = hang
    file = offered("/x")
    process = _process(file, tmp_path)
    try:
        assert arrived.wait(60)
        deadline = time.monotonic() + 30
        while not part_path(tmp_path, file).exists() or part_path(tmp_path, file).stat().st_size < HALF:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert [entry.name for entry in tmp_path.iterdir()] == [part_path(tmp_path, file).name]
    server.answers["/x"] = whole
    check(obtain(file, places=[], target=tmp_path), tmp_path)
    assert server.ranges("/x") == [None, f"bytes={HALF}-"]


def _process(file, target):
    """Another process that obtains the file."""
    code = f"""
        from pathlib import Path
        from flax_mnv2.data.prepare.download import OfficialFile, obtain
        obtain({file!r}, places=[], target=Path({str(target)!r}))
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=os.environ)
