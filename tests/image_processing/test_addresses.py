"""Images behind http addresses, from a server on this machine."""

import http.server
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from flax_mnv2 import DataError
from flax_mnv2.image_processing import fetching
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor


@pytest.fixture(scope="module")
def files():
    """What the server has, by path; a list is sent piece by piece, slowly."""
    return {}


@pytest.fixture(scope="module")
def address(files):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/photo.png")
                self.end_headers()
                return
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            for part in content if isinstance(content, list) else [content or b""]:
                self.wfile.write(part)
                time.sleep(0.05 * isinstance(content, list))

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            """A client that hangs up is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def _png(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_an_address_is_as_good_as_a_path(processor, image, files, address):
    exif = Image.Exif()
    exif[0x0112] = 6
    files["/photo.png"], files["/turned.png"] = _png(image), _png(image, exif=exif)
    files["/map.png"] = _png(image[..., 0])
    found = processor(
        [f"{address}/photo.png", f"{address}/moved", f"{address}/turned.png", image],
        [f"{address}/map.png", image[..., 0], np.rot90(image[..., 0], -1), image[..., 0]],
    )
    expected = processor([image, image, np.rot90(image, -1), image])
    np.testing.assert_array_equal(found.pixel_values, expected.pixel_values)
    np.testing.assert_array_equal(found.labels[0], found.labels[3])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nothing", r"Cannot fetch the image 'http://127.0.0.1:\d+/nothing': HTTP Error 404.*check the address"),
        ("/page", r"Cannot read the image http://127.0.0.1:\d+/page: it is a HTML file"),
        ("/empty", "it is empty"),
        ("/half.png", "Cannot read the image .*half.png: .*truncated"),
        ("/large", "Cannot fetch the image .*: it is larger.* at most 1,000 bytes"),
        ("/slow", "it takes longer.* within 0.1 s"),
        (" /x", "Cannot fetch the image"),
        (":99999999/", "Cannot fetch the image"),
    ],
)
def test_addresses_that_give_no_image(image, files, address, monkeypatch, path, message):
    files["/page"], files["/empty"], files["/half.png"] = b"<html>hello", b"", _png(image)[:-600]
    files["/large"], files["/slow"] = b"x" * 5000, [b"x"] * 20
    if path == "/large":
        monkeypatch.setattr(fetching, "MAX_BYTES", 1000)
    if path == "/slow":
        monkeypatch.setattr(fetching, "TIMEOUT_S", 0.1)
    with pytest.raises(DataError, match=message):
        MobileNetV2ImageProcessor()(address + path)


def test_a_file_may_be_called_as_if_it_were_one(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http_photo.png").write_bytes(_png(image))
    MobileNetV2ImageProcessor()("http_photo.png")
