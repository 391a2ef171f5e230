"""A look for JAX's devices where a command can still say what is wrong with them."""

import jax

from flax_mnv2.errors import ConfigError

_EXTRAS = {"cuda": "jax[cuda13] and NVIDIA's driver", "tpu": "jax[tpu], on a host with TPU chips"}


def check_devices() -> None:
    """Makes JAX look for its devices; a ConfigError where it finds none that ``JAX_PLATFORMS`` allows.

    On several hosts call it after ``jax.distributed.initialize``.
    """
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, or an assertion without words, by platform
        reason = " ".join(str(error).split())
        platforms = jax.config.jax_platforms
        if not platforms:
            raise ConfigError(f"JAX finds no device: {reason or type(error).__name__}.") from error
        first = platforms.partition(",")[0]
        raise ConfigError(
            f"JAX finds no {first} device (JAX_PLATFORMS={platforms}){f': {reason}' if reason else ''}. Install "
            f"{_EXTRAS.get(first, 'its plugin for JAX')}, or unset JAX_PLATFORMS to take what is there."
        ) from error
