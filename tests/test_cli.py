"""What programs keep for the next process."""

import subprocess
import sys

import pytest
from conftest import ROOT

CODE = "from disguide_jax import cli; import jax; {}; print(jax.config.jax_compilation_cache_dir)"


def cache_dir(code: str, **environment: str) -> str:
    """What JAX is told in a process of its own."""
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    command = [sys.executable, "-c", CODE.format(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


def test_programs_keep_what_they_compile_and_importing_does_not(tmp_path):
    assert cache_dir("import disguide_jax.main", XDG_CACHE_HOME=str(tmp_path)) == "None"
    assert not (tmp_path / "disguide_jax").exists()
    kept = cache_dir("cli.keep_compiled()", XDG_CACHE_HOME=str(tmp_path))
    assert kept.startswith(f"{tmp_path}/disguide_jax/compiled-")


def test_the_users_own_place_is_kept():
    own = {"JAX_COMPILATION_CACHE_DIR": "/somewhere", "HOME": "/nowhere"}
    assert cache_dir("cli.keep_compiled()", **own) == "/somewhere"


@pytest.mark.parametrize("place", ["a file", "/proc/none"])
def test_nothing_is_kept_where_nothing_can_be_written(tmp_path, place):
    (tmp_path / "a file").touch()
    assert cache_dir("cli.keep_compiled()", XDG_CACHE_HOME=str(tmp_path / place)) == "None"
