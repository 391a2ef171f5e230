"""Nothing is sent, and nobody asks for secrets: watched while all is imported, and data prepared and trained on.

Downloads that the user asks for are in test_downloads.py.
"""

import json
import os
import pathlib
import subprocess
import sys

import harness
import quick_xla

DECOYS = {
    "HF_TOKEN": "decoy-1",
    "AWS_SECRET_ACCESS_KEY": "decoy-2",
    "GOOGLE_APPLICATION_CREDENTIALS": "/none/decoy-3",
    "WANDB_API_KEY": "decoy-4",
    "MY_PASSWORD": "decoy-5",
}
# They look at the names of all variables, for their own: TQDM_…, and those that a CGI script would be given.
SCANNERS = ("/tqdm/utils.py", "/prometheus_client/exposition.py")


def _home(folder):
    """A home folder with credentials to find."""
    for name in (".netrc", ".cache/huggingface/token", ".aws/credentials", ".config/gcloud/credentials.db"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("machine localhost login decoy password decoy-6\n")
    return folder


def test_a_training_sends_nothing_and_asks_for_no_secret(tmp_path):
    data = harness.Data(tmp_path / "data")
    report, run = tmp_path / "report.json", tmp_path / "run"
    flags = [*data.flags("plain"), f"--workdir={run}", "--config.num_steps=2", "--config.eval_every_steps=2"]
    environment = {
        "HOME": str(_home(tmp_path / "home")),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(harness.ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "XLA_FLAGS": quick_xla.FLAGS,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_HUB")}  # conftest.py's
    command = [sys.executable, harness.HERE / "watched.py", report, json.dumps(harness.BLOCKS), *flags]
    result = subprocess.run(
        list(map(str, command)),
        env=kept | DECOYS | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "step 2/2" in result.stdout
    found = json.loads(report.read_text())
    assert found["connections"] == []
    assert found["sockets"] == []
    assert found["files"] == []
    asked = {asker for name, asker in found["variables"] if name in DECOYS}
    assert {asker for asker in asked if not asker.endswith(SCANNERS)} == set()
    assert asked  # the watch works: at least one of the two was seen to look
    ours = [entry for entry in found["variables"] if pathlib.Path(entry[1]).is_relative_to(harness.ROOT / "flax_mnv2")]
    assert ours == []
    for path in run.rglob("*"):  # and none of it is recorded
        assert not path.is_file() or b"decoy-" not in path.read_bytes(), path
    assert "decoy-" not in result.stdout + result.stderr


def test_the_watch_sees_what_it_should(tmp_path):
    """Or the test above would say nothing."""
    code = f"""
import os, socket, sys
sys.path.insert(0, {str(harness.HERE)!r})
import watched
sys.addaudithook(watched.audit)
watched.watch_variables()
os.environ.get("HF_TOKEN"), os.getenv("MY_PASSWORD"), "WANDB_API_KEY" in os.environ, os.environ.get("PATH")
try:
    open(os.path.expanduser("~/.netrc"))
except OSError:
    pass
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
socket.create_connection(listener.getsockname()).close()
assert [name for name, _ in watched.found["variables"]] == ["HF_TOKEN", "MY_PASSWORD", "WANDB_API_KEY"]
assert len(watched.found["files"]) == 1
assert [kind for kind, *_ in watched.found["connections"]] == ["socket.bind", "socket.getaddrinfo", "socket.connect"]
assert len(watched.internet_sockets()) == 1
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"HOME": str(tmp_path)}, timeout=60, check=True)
