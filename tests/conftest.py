"""Everything runs on the CPU, and what JAX merely tolerates is an error."""

import importlib.util
import os
import pathlib
import signal
from types import ModuleType

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # most time goes to compiling
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("NPROC", "1")  # threads of XLA, in processes that we start too

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True, scope="session")
def _compile_once(tmp_path_factory):
    """Runs of one configuration share what they compile, those in other processes too."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # its folder is one of several side by side
        folder = folder.parent
    folder = str(folder / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


@pytest.fixture(autouse=True)
def _ctrl_c_is_pytests():
    """A program that ends within this process leaves Ctrl-C to the system."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


# What a shell in the background or nohup has us ignore would be ignored by all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = pathlib.Path(__file__).parents[1]


def load_script(path: pathlib.Path | str) -> ModuleType:
    """A file outside the package as a module; a name is that of a file in scripts/."""
    path = ROOT / "scripts" / f"{path}.py" if isinstance(path, str) else path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Recorded numbers, real images and real weights that do not belong to the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder.name}/ beside the project: recorded numbers and real images")
    return folder


@pytest.fixture
def nowhere_else(tmp_path, monkeypatch) -> None:
    """What data_dir "" means is empty, and so is the home: data sets are where a test puts them."""
    from disguide_jax.files import idx

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(idx, "SYSTEM", {})
    monkeypatch.chdir(tmp_path)
