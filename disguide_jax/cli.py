"""Command lines of the form `--config FILE[:variant] [--config.key=value ...]`."""

import difflib
import pathlib
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from disguide_jax import paths, process, shipped
from disguide_jax.errors import UserError, exit_status
from disguide_jax.settings import RENAMED, REQUIRED, settings

WIDTH = 100  # of --help


def run[Kind](
    main: Callable[[flags.FlagValues, Kind], int | None],
    values: flags.FlagValues,
    kind: type[Kind],
    default: Callable[[], Sequence[str]] | None = None,
) -> None:
    """Exits with the status of `call`; a mistake of the user's is one message and 2."""
    sys.exit(exit_status(lambda: call(main, values, kind, default)))


def call[Kind](
    main: Callable[[flags.FlagValues, Kind], int | None],
    values: flags.FlagValues,
    kind: type[Kind],
    default: Callable[[], Sequence[str]] | None = None,
) -> int | None:
    """Parses the command line into `values`, calls `main` with it and the configuration.

    Adds the flag `--config`, of a file that returns a `kind`; where it is not given, `default`
    tells arguments that give it.

    Raises:
      UserError: a mistake on the command line.
    """
    named = any(arg.partition("=")[0] in ("--config", "-config") for arg in sys.argv[1:])
    if default and not named:
        sys.argv[1:1] = default()
    _parse(values, kind)
    process.prepare()
    return main(values, values.config)


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


class _ConfigFile[Kind](flags.ArgumentParser[Kind]):
    """Turns FILE[:variant] into the configuration that the file returns."""

    def __init__(self, kind: type[Kind]):
        self._kind = kind

    def parse(self, argument: str) -> Kind:
        """Returns the configuration that a file and its variant make.

        Raises:
          UserError: there is no such file, it fails, or it returns something else.
        """
        name, *variant = argument.split(":", 1)
        if not name:
            raise UserError(f"--config is missing\n\n{_usage()}")
        path = paths.expanded(name)
        if not path.is_file():
            path = _shipped(path) or path
        if not path.is_file():
            raise UserError(f"--config: {_absent(path)}")
        what = f"{self._kind.__module__}.{self._kind.__name__}"
        wrong = f"--config: {path} is not a file whose get_config(variant) returns a {what}"
        try:
            module = shipped.run(path)
            if not hasattr(module, "get_config"):
                raise UserError(f"{wrong}: it has no get_config")
            made = module.get_config(*variant)
        except UserError:
            raise
        except SyntaxError as error:
            where = f"{path}, line {error.lineno}" if error.lineno else str(path)
            raise UserError(f"--config: {where}: not a line of Python: {error.msg}") from error
        except (Exception, SystemExit) as error:  # whatever a file of a user's may do
            raise UserError(f"--config: {_fault(path, error)}") from error
        if isinstance(made, self._kind):
            return made
        raise UserError(f"{wrong}: it returns a {type(made).__name__}")


def _shipped(path: pathlib.Path) -> pathlib.Path | None:
    """The configuration that comes with the program, of NAME, NAME.py or configs/NAME.py."""
    if path.parent not in (pathlib.Path(), pathlib.Path("configs")):
        return None
    found = shipped.CONFIGS / f"{path.name.removesuffix('.py')}.py"
    return found if found.is_file() else None


def _fault(path: pathlib.Path, error: BaseException) -> str:
    """An exception in one line, with the last line of the file that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    return f"{where}: {type(error).__name__}: {error}".rstrip(": ")


def _absent(path: pathlib.Path) -> str:
    """What to say of a path that is no file, with files of a name like it."""
    if path.is_dir():
        return paths.absent(path)
    files = {str(file): file.name for file in path.parent.glob("*.py")}
    files |= {f"configs/{file.name}": file.name for file in shipped.CONFIGS.glob("*.py")}
    names = difflib.get_close_matches(f"{path.stem}.py", files.values(), n=1, cutoff=0.7)
    found = [file for file, name in files.items() if name in names]
    near = f"; did you mean {' or '.join(found)}?" if found else ""
    return f"{path} is not a file{paths.looked_for(path)}{near}"


def _parse(values: flags.FlagValues, kind: type) -> None:
    usage = _usage()
    try:
        config_flags.DEFINE_config_file(
            "config", None, "configs/NAME.py or configs/NAME.py:variant", flag_values=values
        )
        values["config"].parser = _ConfigFile(kind)
        flags.DEFINE_boolean("help", False, "Show this.", short_name="h", flag_values=values)
        unused = values(sys.argv)[1:]
    except flags.CantOpenFlagFileError as error:
        missing = getattr(error.__context__, "filename", None)
        said = paths.absent(pathlib.Path(missing)) if missing else error
        raise UserError(f"--flagfile: {said}") from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_right_value(str(error), kind)) from error
    except flags.Error as error:
        raise UserError(f"{error}\n\n{usage}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--flagfile: not a file of text: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        matches = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in sys.argv[1:])
        overridden = [match[1] for match in matches if match]
        unknown = next((key for key in overridden if key not in settings(kind)), None)
        if unknown is None:
            raise
        raise UserError(f"unknown key: {_correct(unknown, kind)}") from error
    if values.help:
        print(usage, values.get_help(), describe_keys(kind), sep="\n\n")
        sys.exit(0)
    if unused:
        raise UserError(f"unknown argument {unused[0]!r}\n\n{usage}")
    require(values, "config")


def _right_value(said: str, kind: type) -> str:
    """What to say of a value that is of another type than its flag."""
    match = re.match(r"flag --(.*?)=(.*?): ", said, re.DOTALL)
    if not match:
        return said
    name, value = match.groups()
    key = name.removeprefix("config.")
    if key != name:
        if key not in settings(kind):
            return f"unknown key: {_correct(key, kind)}"
        return f"{name} is {value!r}; it must be {settings(kind)[key].wanted(None)}"
    return said.replace(repr(("Non-boolean argument to boolean flag", value)), "true or false?")


def _correct(unknown: str, kind: type) -> str:
    """What to write in place of a key that is not there."""
    if unknown in RENAMED:
        return f"config.{unknown} is now called config.{RENAMED[unknown]}"
    keys, last = list(settings(kind)), unknown.rpartition(".")[2]
    if group := [key for key in keys if key.startswith(f"{unknown}.")]:
        return f"config.{unknown} is a group of keys, such as config.{group[0]}; --help lists all"
    close = [key for key in keys if key.rpartition(".")[2] == last]
    close = close or difflib.get_close_matches(unknown, keys)
    if not close:
        return f"config.{unknown}; --help lists all"
    return f"config.{unknown}; did you mean {' or '.join(f'config.{key}' for key in close)}?"
