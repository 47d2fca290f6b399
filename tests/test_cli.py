"""What programs keep for the next process."""

import ctypes
import subprocess
import sys

import pytest
from conftest import ROOT

CODE = (
    "from disguide_jax import process; import jax; {}; print(jax.config.jax_compilation_cache_dir)"
)


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
    kept = cache_dir("process.keep_compiled()", XDG_CACHE_HOME=str(tmp_path))
    assert kept.startswith(f"{tmp_path}/disguide_jax/compiled-")


def test_the_users_own_place_is_kept():
    own = {"JAX_COMPILATION_CACHE_DIR": "/somewhere", "HOME": "/nowhere"}
    assert cache_dir("process.keep_compiled()", **own) == "/somewhere"


@pytest.mark.parametrize("place", ["a file", "/proc/none"])
def test_nothing_is_kept_where_nothing_can_be_written(tmp_path, place):
    (tmp_path / "a file").touch()
    assert cache_dir("process.keep_compiled()", XDG_CACHE_HOME=str(tmp_path / place)) == "None"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_programs_keep_large_memory_that_is_freed():
    """By the page faults of filling 64 MB again and again."""
    code = """
import resource, sys
import numpy as np
from disguide_jax import process
if sys.argv[1] == "kept":
    process.keep_memory()
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "NUMPY_MADVISE_HUGEPAGE": "0"}

    def faults(kept: str) -> int:
        command = [sys.executable, "-c", code, kept]
        return int(subprocess.check_output(command, env=environment, text=True))

    assert faults("kept") < 1_000 < faults("given back")
