"""What a process of ours sets up before it computes."""

import contextlib
import ctypes
import hashlib
import os
import pathlib

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def prepare() -> None:
    """Lets it find what others have compiled, and reuse what it frees."""
    keep_compiled()
    keep_memory()


def keep_compiled() -> None:
    """Lets the next process find what this one compiles, in $XDG_CACHE_HOME or ~/.cache.

    JAX_COMPILATION_CACHE_DIR has the last word; where nothing can be written nothing is kept.
    """
    import jax  # takes a second, and --help needs none

    if jax.config.jax_compilation_cache_dir is not None:
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home, or none of ours
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(home, "disguide_jax", f"compiled-{_processor()}")
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def keep_memory() -> None:
    """Lets the C library reuse what is freed.

    Each call of a compiled round takes its scratch memory anew. From 32 MB on glibc gives it
    back to the system in between, which clears every page before the next call.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _processor() -> str:
    """Of what a CPU can do: programs for another one would crash here, and homes are shared."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return hashlib.sha256(features.encode()).hexdigest()[:8]
    return os.uname().machine
