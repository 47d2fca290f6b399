"""Command lines of the form `--config FILE[:variant] [--config.key=value ...]`."""

import contextlib
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from disguide_jax.errors import UserError


def run(main: Callable[[flags.FlagValues], int | None], values: flags.FlagValues) -> None:
    """Parses the command line into `values`, calls `main` with it, and exits.

    Adds the flag `--config`. A mistake of the user's is one message and status 2, never a
    traceback.
    """
    config_flags.DEFINE_config_file(
        "config", None, "configs/NAME.py or configs/NAME.py:variant", flag_values=values
    )
    flags.DEFINE_boolean("help", False, "Show this.", short_name="h", flag_values=values)
    try:
        _parse(values)
        keep_compiled()
        sys.exit(main(values))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


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


def _processor() -> str:
    """Of what a CPU can do: programs for another one would crash here, and homes are shared."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return hashlib.sha256(features.encode()).hexdigest()[:8]
    return os.uname().machine


def _parse(values: flags.FlagValues) -> None:
    usage = (sys.modules["__main__"].__doc__ or "").strip()
    try:
        unused = values(sys.argv)[1:]
    except flags.Error as error:
        raise UserError(f"{error}\n\n{usage}") from error
    except (KeyError, AttributeError) as error:  # an override of a key that is not there
        raise UserError(f"unknown key: {error.args[0]}") from error
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise UserError(f"--config: {where}: not a line of Python: {error.msg}") from error
    if values.help:
        print(usage, values.get_help(), sep="\n\n")
        sys.exit(0)
    if unused:
        raise UserError(f"unknown argument {unused[0]!r}\n\n{usage}")
    if values.config is None:
        raise UserError(f"--config is missing\n\n{usage}")


def config_of(values: flags.FlagValues, kind: type) -> Any:
    """The configuration that `--config` names, with its overrides.

    Raises:
      UserError: there is no such file, or it returns something else than a `kind`.
    """
    if isinstance(values.config, kind):
        return values.config
    path = config_flags.get_config_filename(values["config"])
    what = f"a file whose get_config(variant) returns a {kind.__module__}.{kind.__name__}"
    raise UserError(f"--config: {path} is not {what}")
