"""The kinds of endpoints, by what their names begin with."""

import hashlib

from disguide_jax import paths
from disguide_jax.errors import UserError
from disguide_jax.options import VictimConfig
from disguide_jax.victims import onnx
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.host import KEY, PYTHON, Endpoint, Function, find_function
from disguide_jax.victims.onnx import Onnx
from disguide_jax.victims.service import Service

HTTP = ("http://", "https://")


def connect(config: VictimConfig, contract: Contract) -> Endpoint:
    """The endpoint that a configuration names. Nothing is sent to it yet.

    Raises:
      UserError: there is none, or it cannot be what is said of it.
    """
    name = config.endpoint
    if name.startswith(PYTHON):
        return Function(name, find_function(name), contract)
    if name.startswith(onnx.PREFIX):
        return Onnx(config, contract)
    if name.startswith(HTTP):
        return Service(config, contract)
    kinds = ", ".join((PYTHON, onnx.PREFIX, *HTTP))
    raise UserError(f"{KEY} is {name!r}; it must begin with one of {kinds}")


def sizes(config: VictimConfig) -> dict[str, int]:
    """What an endpoint itself says of image_size, channels and num_classes; 0 where it does not.

    Raises:
      UserError: it contradicts the configuration.
    """
    if not config.endpoint.startswith(onnx.PREFIX):
        return {}
    file = Onnx(config, Contract(config.num_classes, hard_labels=True))
    return {key: getattr(file, key) for key in ("image_size", "channels", "num_classes")}


def fingerprint(config: VictimConfig) -> str:
    """A hash of an endpoint: of a file its content, of what cannot be looked into its name.

    Raises:
      UserError: there is no such file; says which command makes it.
    """
    if not config.endpoint.startswith(onnx.PREFIX):
        return hashlib.sha256(config.endpoint.encode()).hexdigest()
    path = onnx.path_of(config)
    if not path.is_file():
        how = f"\nMake it:    {config.made_by}" if config.made_by else ""
        raise UserError(f"{KEY}: {paths.absent(path)}{how}")
    return onnx.fingerprint(path)
