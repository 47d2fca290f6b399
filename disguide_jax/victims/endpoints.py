"""The kinds of endpoints, by what their names begin with."""

import hashlib
import pathlib

from disguide_jax.errors import UserError
from disguide_jax.options import VictimConfig
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.host import HTTP, KEY, ONNX, PYTHON, Endpoint, Function, find_function


def connect(config: VictimConfig, contract: Contract) -> Endpoint:
    """The endpoint that a configuration names. Nothing is sent to it yet.

    Raises:
      UserError: there is none, or it cannot be what is said of it.
    """
    if config.endpoint.startswith(PYTHON):
        return Function(config.endpoint, find_function(config.endpoint), contract)
    raise UserError(
        f"{KEY} is {config.endpoint!r}; it must begin with {PYTHON}, {ONNX} or {' or '.join(HTTP)}"
    )


def fingerprint(config: VictimConfig) -> str:
    """A hash of an endpoint: of a file its content, of what cannot be looked into its name.

    Raises:
      UserError: there is no such file.
    """
    if not config.endpoint.startswith(ONNX):
        return hashlib.sha256(config.endpoint.encode()).hexdigest()
    path = pathlib.Path(config.endpoint.removeprefix(ONNX))
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        how = f"\nMake it:    {config.made_by}" if config.made_by else ""
        raise UserError(f"{KEY}: {path} cannot be read: {error.strerror}{how}") from error
