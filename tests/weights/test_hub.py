"""The hub: what is asked for and what is not, anonymously, and one error where nothing comes."""

import os
import pathlib
import subprocess
import sys

import pytest

from flax_mnv2 import CheckpointError, from_pretrained, hub
from flax_mnv2.files import shown

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _id(value):
    """A short name for a value, some of which cannot be printed."""
    return ascii(shown(value))[:40]


@pytest.mark.parametrize(
    "name",
    [
        "../x", "a/b/c", "a//b", "/a", "a/", "https://example.org/x", "file:///etc", "gs://x/y", "a\x00b", "a/b\n",
        " a/b", "g\u043e\u043egle/x", "a/..", "../../etc/passwd", "a..b/c", "a--b/c", "-rf", "--help", ".git/x",
        "a" * 97, "a/" + "b" * 97, "a" * 100_000, "", ".", "a/b?x", "a/b#x", "a:b@c/d", "a\\b", "$HOME/x", "\udcff/x",
        "models--a--b",
    ],
    ids=_id,
)  # fmt: skip
def test_hostile_hub_ids_ask_nobody(tmp_path, monkeypatch, name):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("was asked for"))
    (tmp_path / "config.json").touch()
    if name in ("", "."):
        assert hub.resolve_folder(name, files=("config.json",)).samefile(tmp_path)
        return
    with pytest.raises(CheckpointError) as caught:
        hub.resolve_folder(name, files=("config.json",))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "revision",
    ["../../x", "..", "a/../b", "-rf", "", " ", "a b", "/etc", "refs//x", "refs/", "a\x00", "a\n", "v1;ls"],
    ids=_id,
)  # fmt: skip
def test_hostile_revisions_ask_nobody(monkeypatch, revision):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("was asked for"))
    with pytest.raises(CheckpointError, match="revision must be a branch"):
        hub.resolve_folder("owner/name", revision=revision, files=("config.json",))


def test_downloads_are_anonymous_and_of_named_files_only(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", "secret")
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path))
    hub.resolve_folder("owner/name", revision="refs/pr/1", files=("config.json", "model.safetensors"))
    options = {"revision": "refs/pr/1", "cache_dir": None, "token": False}
    assert asked == [(("owner/name",), options | {"allow_patterns": ["config.json", "model.safetensors"]})]


def test_usage_data_is_off_where_nobody_said_so(tmp_path):
    """That no token is passed on either is tested where downloads are."""
    script = (
        "from flax_mnv2 import hub\n"
        "try:\n"
        f"    hub.resolve_folder('owner/name', cache_dir={str(tmp_path)!r}, files=('config.json',))\n"
        "except hub.CheckpointError as error:\n"
        "    assert 'secret' not in str(error)\n"
        "import huggingface_hub.constants as constants\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY\n"
        "print('done')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_TELEMETRY"}
    environment |= {"HF_TOKEN": "secret", "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "done", result.stderr


def test_hub_downloads_prefer_safetensors(make_folder, tmp_path, monkeypatch, tiny_blocks, assert_same):
    import fnmatch
    import shutil

    import huggingface_hub

    folder = make_folder("segmentation")
    variables = from_pretrained(folder)[1]
    asked = []

    def download(name, *, revision, cache_dir, allow_patterns, token):
        assert token is False
        asked.append((name, revision, cache_dir))
        target = tmp_path / f"download_{len(asked)}"
        target.mkdir()
        for path in folder.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (folder / "pytorch_model.bin").write_bytes(b"must not be fetched")
    assert_same(from_pretrained("owner/name", revision="v1", cache_dir="cache")[1], variables)
    assert asked == [("owner/name", "v1", "cache")]
    assert not (tmp_path / "download_1" / "pytorch_model.bin").exists()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"Cannot read .*pytorch_model\.bin"):
        from_pretrained("owner/name")


def test_a_hub_id_without_network_is_explained(tmp_path):
    with pytest.raises(CheckpointError, match=r"could not be downloaded .* give a local folder"):
        from_pretrained("nobody/nothing", cache_dir=tmp_path)
