"""Where compiled programs are kept, and who decides."""

import jax
import pytest

from flax_mnv2.compilation_cache import use_compilation_cache


@pytest.fixture(autouse=True)
def unset(monkeypatch, tmp_path):
    """JAX without a folder, as where no variable names one; restored afterwards."""
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_by_default_in_the_users_cache(tmp_path):
    folder = tmp_path / "cache" / "flax_mnv2" / "programs"
    assert use_compilation_cache() == str(folder) == jax.config.jax_compilation_cache_dir
    assert folder.is_dir()
    assert jax.config.jax_compilation_cache_max_size == 4 * 2**30


def test_without_xdg_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert use_compilation_cache() == str(tmp_path / "home" / ".cache" / "flax_mnv2" / "programs")


def test_in_a_folder_of_ones_own_or_nowhere(tmp_path):
    assert use_compilation_cache("") == ""
    assert jax.config.jax_compilation_cache_dir is None
    assert (
        use_compilation_cache(str(tmp_path / "mine")) == str(tmp_path / "mine") == jax.config.jax_compilation_cache_dir
    )


def test_jaxs_own_settings_go_first(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    assert (
        use_compilation_cache(str(tmp_path / "ours")) == str(tmp_path / "jax") == jax.config.jax_compilation_cache_dir
    )
    jax.config.update("jax_enable_compilation_cache", False)
    assert use_compilation_cache() == ""


def test_without_a_place_to_write_to_programs_are_not_kept(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert use_compilation_cache() == ""
    assert jax.config.jax_compilation_cache_dir is None
