"""Command lines of the form `--config FILE[:variant] [--config.key=value ...]`."""

import contextlib
import ctypes
import difflib
import hashlib
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable

import jax
from absl import flags
from ml_collections import config_flags

from disguide_jax.errors import UserError, exit_status
from disguide_jax.settings import RENAMED, REQUIRED, settings

WIDTH = 100  # of --help
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def run[Kind](
    main: Callable[[flags.FlagValues, Kind], int | None],
    values: flags.FlagValues,
    kind: type[Kind],
) -> None:
    """Parses the command line into `values`, calls `main` with it and the configuration, exits.

    Adds the flag `--config`, of a file that returns a `kind`. A mistake of the user's is one
    message and status 2, never a traceback.
    """
    config_flags.DEFINE_config_file(
        "config", None, "configs/NAME.py or configs/NAME.py:variant", flag_values=values
    )
    flags.DEFINE_boolean("help", False, "Show this.", short_name="h", flag_values=values)

    def parsed() -> int | None:
        _parse(values, kind)
        config = _config_of(values, kind)
        keep_compiled()
        keep_memory()
        return main(values, config)

    sys.exit(exit_status(parsed))


def keep_compiled() -> None:
    """Lets the next process find what this one compiles, in $XDG_CACHE_HOME or ~/.cache.

    JAX_COMPILATION_CACHE_DIR has the last word; where nothing can be written nothing is kept.
    """
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


def describe_keys(kind: type) -> str:
    """All keys of a kind of configuration with defaults, bounds and meaning, for `--help`."""
    blocks = ["Keys of the configuration, overridden with --config.KEY=VALUE, and their defaults:"]
    for key, known in settings(kind).items():
        default = "" if known.default is REQUIRED else f" = {known.default!r}"
        parts = (known.help, known.right, "may change when a run continues" * known.resume)
        text = "; ".join(filter(None, parts))
        indent = " " * 6
        blocks.append(f"  {key}{default}")
        blocks.append(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent))
    return "\n".join(blocks)


def require(values: flags.FlagValues, *names: str) -> None:
    """Raises UserError, with the usage, where one of these flags is not given."""
    for name in names:
        if values[name].value in (None, ""):
            raise UserError(f"--{name} is missing\n\n{_usage()}")


def _usage() -> str:
    return (sys.modules["__main__"].__doc__ or "").strip()


def _parse(values: flags.FlagValues, kind: type) -> None:
    usage = _usage()
    try:
        unused = values(sys.argv)[1:]
    except flags.Error as error:
        raise UserError(f"{error}\n\n{usage}") from error
    except (AttributeError, LookupError, TypeError) as error:
        matches = (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in sys.argv[1:])
        overridden = [match[1] for match in matches if match]
        if not overridden:  # a mistake in the file, which the traceback shows
            raise
        unknown = next((key for key in overridden if key not in settings(kind)), None)
        if unknown is None:  # perhaps the file is of another kind
            raise UserError(f"--config: {error.args[0]}") from error
        raise UserError(f"unknown key: {_correct(unknown, kind)}") from error
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise UserError(f"--config: {where}: not a line of Python: {error.msg}") from error
    if values.help:
        print(usage, values.get_help(), describe_keys(kind), sep="\n\n")
        sys.exit(0)
    if unused:
        raise UserError(f"unknown argument {unused[0]!r}\n\n{usage}")
    require(values, "config")


def _config_of[Kind](values: flags.FlagValues, kind: type[Kind]) -> Kind:
    if isinstance(values.config, kind):
        return values.config
    path = config_flags.get_config_filename(values["config"])
    what = f"a file whose get_config(variant) returns a {kind.__module__}.{kind.__name__}"
    raise UserError(f"--config: {path} is not {what}")


def _correct(unknown: str, kind: type) -> str:
    """What to write in place of a key that is not there."""
    if unknown in RENAMED:
        return f"config.{unknown} is now called config.{RENAMED[unknown]}"
    keys, last = list(settings(kind)), unknown.rpartition(".")[2]
    close = [key for key in keys if key.rpartition(".")[2] == last]
    close = close or difflib.get_close_matches(unknown, keys)
    if not close:
        return f"config.{unknown}; --help lists all"
    return f"config.{unknown}; did you mean {' or '.join(f'config.{key}' for key in close)}?"
