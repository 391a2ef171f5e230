"""What commands say where JAX has no device of the kind that it was told to use."""

import os
import subprocess
import sys

import jax
import pytest

from flax_mnv2.devices import check_devices
from flax_mnv2.errors import ConfigError


def test_a_command_says_so_in_one_line(tmp_path):
    (tmp_path / "a.jpg").touch()
    result = subprocess.run(
        [sys.executable, "-m", "flax_mnv2.predict", tmp_path / "a.jpg"],
        env=os.environ | {"JAX_PLATFORMS": "nonesuch"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: JAX finds no nonesuch device (JAX_PLATFORMS=nonesuch)")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("platforms", "error", "message"),
    [
        ("cuda", AssertionError(), r"no cuda device \(JAX_PLATFORMS=cuda\)\. Install jax\[cuda"),
        (
            "tpu,cpu",
            RuntimeError("Unable to\ninitialize"),
            r"no tpu device .*: Unable to initialize\. Install jax\[tpu\]",
        ),
        ("", RuntimeError("no driver"), r"JAX finds no device: no driver\."),
    ],
)
def test_what_to_install_is_named(monkeypatch, platforms, error, message):
    def devices():
        raise error

    before = jax.config.jax_platforms
    monkeypatch.setattr(jax, "devices", devices)
    try:
        jax.config.update("jax_platforms", platforms)
        with pytest.raises(ConfigError, match=message):
            check_devices()
    finally:
        jax.config.update("jax_platforms", before)
