"""Compiled programs on disk, so that a command that starts again hardly compiles."""

import os
import pathlib

import jax

AUTO = "auto"
_MAX_BYTES = 4 * 2**30  # of our own folder; what was not used for longest goes first


def use_compilation_cache(folder: str = AUTO) -> str:
    """Keeps compiled programs in ``folder`` from now on; returns where they are kept, or "" for nowhere.

    ``"auto"`` is a folder in the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``), ``""`` keeps nothing. JAX's own
    settings, such as ``JAX_COMPILATION_CACHE_DIR`` and ``JAX_ENABLE_COMPILATION_CACHE``, go first.
    """
    if not jax.config.jax_enable_compilation_cache:
        return ""
    if jax.config.jax_compilation_cache_dir:
        return str(jax.config.jax_compilation_cache_dir)
    if folder == AUTO:
        try:
            path = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flax_mnv2" / "programs"
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # no home folder, or none to write to
            return ""
        folder = str(path)
        if jax.config.jax_compilation_cache_max_size == -1:  # JAX's default, no limit
            jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    if folder:
        folder = os.path.expanduser(folder)
        jax.config.update("jax_compilation_cache_dir", folder)
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # JAX's 1 leaves out what takes 0.9 s
    return folder
