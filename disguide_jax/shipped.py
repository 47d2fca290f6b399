"""The configurations that come with the program: configs/NAME.py."""

import importlib.machinery
import pathlib
import sys
from types import ModuleType
from typing import Any

_PACKAGE = pathlib.Path(__file__).parent
CONFIGS = next(  # in the package where that was installed, beside it in a checkout
    folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()
)


def load(name: str) -> Any:
    """What configs/NAME.py returns; of "NAME:VARIANT" that variant.

    Raises:
      FileNotFoundError: there is no such file.
    """
    file, _, variant = name.partition(":")
    return run(CONFIGS / f"{file}.py").get_config(variant)


def run(path: pathlib.Path) -> ModuleType:
    """What a file of Python defines, whatever its name ends with."""
    name = f"disguide_jax_config_{path.stem}"
    module = sys.modules[name] = ModuleType(name)  # dataclasses look for it there
    module.__file__ = str(path)
    importlib.machinery.SourceFileLoader(name, str(path)).exec_module(module)
    return module
