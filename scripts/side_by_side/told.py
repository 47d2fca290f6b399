"""What a run was told: the configuration that it left, of which this program does a part."""

import json
import operator
import pathlib
from types import SimpleNamespace

ASSETS = pathlib.Path(__file__).parents[2] / "disguide_jax" / "assets"
DONE_HERE: dict[str, tuple[object, ...]] = {  # of keys that can be told more
    "method": ("disguide",),
    "query_dtype": ("float32",),
    "precision": ("float32",),
    "guard": ("warn", "off"),
    "victim.input_space": ("pre-transform",),
    "generator.model": ("dfme",),
    "clones.soft_loss": ("l1", "cross_entropy"),
    "clones.prob_floor": (1e-30,),
    "clones.average_decay": (0,),
    "replay.dtype": ("float32",),
    "replay.crop_padding": (0,),
    "replay.flip": (False,),
    "schedule.shape": ("steps",),
}


def read_config(path: pathlib.Path, budget: int | None) -> SimpleNamespace:
    """The configuration in a run's config.json or summary.json, with another budget if given.

    Raises:
      ValueError: it is none, or asks for what this program does not do.
    """
    try:
        content = path.read_text()
        config = json.loads(content, object_hook=lambda keys: SimpleNamespace(**keys)).config
        for key, done in DONE_HERE.items():
            if (value := operator.attrgetter(key)(config)) not in done:
                known = " or ".join(map(repr, done))
                raise ValueError(f"{path}: config.{key} is {value!r}; here it must be {known}")
        config.victim.path = weights_path(config.victim.weights)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: not what a run of today's program left: {error}") from error
    config.query_budget = budget or config.query_budget
    if config.query_budget < config.disguide.fresh_batches * config.batch_size:
        raise ValueError(f"a budget of {config.query_budget} pays for no round")
    return config


def weights_path(weights: str) -> pathlib.Path | None:
    """The file of the victim's weights, embedded or not; None if they are random."""
    if weights == "random":
        return None
    name = weights.removeprefix("embedded:")
    path = pathlib.Path(name) if name == weights else ASSETS / name
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"config.victim.weights is {weights!r}; it must be a .safetensors file")
    return path
