"""Victims as oracles: images in, probabilities or labels out, nothing else.

A victim is passed to the compiled step as an argument rather than closed over: XLA would
copy the weights into the program as constants. Any pytree that can be called with images
will do; wrap a plain function as `jax.tree_util.Partial(fn)`.
"""

import hashlib
import json
import math
import pathlib
import shlex

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from disguide_jax import models, options, paths
from disguide_jax.core.types import Apply, Array, Net, Variables
from disguide_jax.errors import UserError
from disguide_jax.files import architectures, datasets, weights
from disguide_jax.files.architectures import Architecture
from disguide_jax.options import EMBEDDED, RANDOM_WEIGHTS, VictimConfig

ASSETS = pathlib.Path(__file__).parents[1] / "assets"


class Victim(struct.PyTreeNode):
    """A classifier behind an interface that shows only its answers."""

    variables: Variables
    mean: Array  # [1, 1, 1, channels], of images in [-1, 1]
    std: Array  # [1, 1, 1, channels]
    apply: Apply = struct.field(pytree_node=False)
    hard_labels: bool = struct.field(pytree_node=False)
    knows_transform: bool = struct.field(pytree_node=False)  # input_space "post-transform"

    def __call__(self, images: Array) -> Array:
        """Answers a query.

        Args:
          images: [N, H, W, channels] in the attacker's input space: [-1, 1], which the victim
            normalises itself, unless the attacker knows the transform and has applied it.

        Returns:
          Probabilities [N, K], or int32 labels [N].
        """
        if not self.knows_transform:
            images = self._transform(images)
        # GPUs multiply float32 in fewer digits unless told otherwise.
        with jax.default_matmul_precision("highest"):
            logits, _ = self.apply(self.variables, images, train=False)
        if self.hard_labels:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.nn.softmax(logits)

    def to_input_space(self, images: Array) -> Array:
        """Real images in [-1, 1], for evaluation, as the attacker's clones must see them."""
        return self._transform(images) if self.knows_transform else images

    def _transform(self, images: Array) -> Array:
        return (images - self.mean.astype(images.dtype)) / self.std.astype(images.dtype)


def make_victim(
    net: Net,
    variables: Variables,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    hard_labels: bool,
    knows_transform: bool = False,
) -> Victim:
    """A victim from a network.

    Args:
      net: images -> logits.
      variables: its weights.
      mean: of pixels in [0, 1], per channel, as its training normalised them.
      std: likewise.
      hard_labels: answer with labels instead of probabilities.
      knows_transform: the attacker sends images that are already normalised (Table 4).
    """
    # Pixels p in [0, 1] are x = 2p - 1, so (p - m) / s = (x - (2m - 1)) / (2s).
    return Victim(
        variables=variables,
        mean=2 * jnp.asarray(mean).reshape(1, 1, 1, -1) - 1,
        std=2 * jnp.asarray(std).reshape(1, 1, 1, -1),
        apply=net.apply,
        hard_labels=hard_labels,
        knows_transform=knows_transform,
    )


def load_network(
    config: VictimConfig, *, num_classes: int, size: int, channels: int
) -> tuple[Net, Variables, Architecture]:
    """The victim's network and weights; its architecture is read off the weights.

    Args:
      config: where the weights are and what they must be.
      num_classes: K, of the data set.
      size: height and width of the data set's images in pixels.
      channels: of the data set's images.

    Raises:
      UserError: the weights are absent, damaged, or of another architecture or data set.
    """
    random, brought = config.weights == RANDOM_WEIGHTS, models.is_brought(config.model)
    if random and not config.model:
        raise UserError(
            "config.victim.model is empty; weights that are random must be those of one of "
            + options.MODELS
        )
    held = weights.Weights({}, {}, []) if random else weights.load(weights_path(config))
    recorded = held.metadata
    state_dict = held.state_dict if brought else architectures.with_our_names(held.state_dict)
    if random or brought:
        said = recorded.get("width", "") if recorded.get("model") == config.model else ""
        recorded_width = int(said) if said.isdecimal() else 0
        width = config.width or recorded_width or models.usual_width(config.model)
        found = Architecture(config.model, width, channels, num_classes)
    else:
        found = _recognise(state_dict, config, recorded.get("model", ""))
        _refuse_other(config, found, num_classes=num_classes, size=size, channels=channels)
    net = models.make_classifier(**found._replace(size=size)._asdict())
    if random:
        return net, jax.jit(net.init)(jax.random.key(0)), found
    return net, _fit(net, state_dict, found, config.weights), found


def _recognise(state_dict: weights.StateDict, config: VictimConfig, recorded: str) -> Architecture:
    """What weights are of; where names and shapes do not tell, what is recorded or asked for."""
    try:
        found = architectures.recognise(state_dict, config.weights)
    except UserError as error:
        if not models.is_brought(recorded):
            raise
        # A file may not choose what is imported, which runs it: its owner does.
        raise UserError(
            f"{config.weights}: its file says that it is of {recorded}, a Flax module that is not "
            f"this project's. If you trust that module: --config.victim.model={recorded}"
        ) from error
    return architectures.taken_as(architectures.taken_as(found, recorded), config.model)


def _refuse_other(
    config: VictimConfig, found: Architecture, *, num_classes: int, size: int, channels: int
) -> None:
    """Refuses weights of another architecture than is wanted, or for another data set."""
    wanted = found._replace(
        model=config.model or found.model,
        width=config.width or found.width,
        num_classes=num_classes,
        channels=channels,
    )
    for key, meant in wanted._asdict().items():
        if (has := getattr(found, key)) != meant:
            remedy = f"; --config.victim.{key}={has} takes it as it is"
            raise UserError(
                f"{config.weights}: {key} is {has!r}, but the configuration needs {meant!r}"
                + (remedy if key in ("model", "width") else "")
            )
    if found.size not in (0, size):
        raise UserError(
            f"{config.weights}: a {found.model} for images of {found.size}x{found.size} "
            f"pixels, but those of the data set are {size}x{size}"
        )


def _fit(net: Net, state_dict: weights.StateDict, found: Architecture, where: str) -> Variables:
    """The variables that a state dict holds; what it was taken for is said where it does not fit.

    Raises:
      UserError: it does not fit; says what it looks like.
    """
    template = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    taken = f"{where}, taken for a {found.model} of width {found.width} by a few of its names"
    if models.is_brought(found.model):
        return weights.fit(state_dict, template, where)
    try:
        return weights.fit(state_dict, template, taken)
    except UserError as error:
        raise UserError(f"{error}{architectures.looks_like(state_dict)}") from error


def fingerprint(config: VictimConfig) -> str:
    """A hash of the weights, whatever file they are in; of random ones, what they are drawn for.

    Raises:
      UserError: they are absent or damaged.
    """
    if config.weights == RANDOM_WEIGHTS:
        width = config.width or models.usual_width(config.model)
        return hashlib.sha256(f"random {config.model} {width}".encode()).hexdigest()
    state_dict = weights.load_state_dict(weights_path(config))
    counted = (name for name in state_dict if not name.endswith("num_batches_tracked"))
    return weights.fingerprint([{name: state_dict[name] for name in counted}])


def normalisation(
    config: VictimConfig, info: datasets.Info
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1], per channel, that the victim expects.

    What its file says, or else the configuration, or else the data set's own.

    Args:
      config: where the weights are, and what is known of them.
      info: of the data set.

    Raises:
      UserError: file and configuration contradict each other, or one has a wrong number of
        channels.
    """
    recorded = {}
    if config.weights != RANDOM_WEIGHTS:
        recorded = weights.load_metadata(weights_path(config))
    found = []
    for name in ("mean", "std"):
        configured, usual = getattr(config, name), getattr(info, name)
        said = tuple(json.loads(recorded[name])) if name in recorded else ()
        said *= info.channels if len(said) == 1 else 1  # one value is that of every channel
        if said and configured and not np.allclose(said, configured, atol=1e-4):
            raise UserError(
                f"config.victim.{name} is {configured}, but {config.weights} says that it was "
                f"trained with {said}: leave config.victim.{name} out"
            )
        values = tuple(configured or said or usual)
        if len(values) != info.channels:
            raise UserError(
                f"config.victim.{name} is {values}; it must have one value for each of "
                f"{info.channels} channels"
            )
        found.append(values)
    return found[0], found[1]


def weights_path(config: VictimConfig) -> pathlib.Path:
    """The file that `config.weights` names.

    Raises:
      UserError: there is none; says which commands make it.
    """
    if config.weights.startswith(EMBEDDED):
        path = ASSETS / config.weights.removeprefix(EMBEDDED)
    else:
        path = paths.expanded(config.weights)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"config.victim.weights: {paths.absent(path)}")
    how = f"\nTrain one:    {config.made_by}" if config.made_by else ""
    raise UserError(
        f"config.victim.weights: {paths.absent(path)}"
        f"{how}"
        "\nBring your own PyTorch weights:    "
        f"python scripts/convert_victim.py IN.pt {shlex.quote(str(path))}"
        "\nor name another file:    --config.victim.weights=FILE"
    )


def convert_victim(
    source: pathlib.Path, target: pathlib.Path, *, model: str = "", **known: object
) -> str:
    """Checks a classifier's weights and writes them as a victim's, in safetensors.

    Args:
      source: of the weights.
      target: the new file.
      model: what they are of, where names and shapes do not tell; "" takes what they look like.
      **known: of mean, std and test_accuracy what its owner knows; the file keeps it.

    Returns:
      What they are, in two lines, and a line on each doubt and on what was taken off.

    Raises:
      UserError: `target` exists, or `source` is no classifier's weights, or not of that model.
    """
    if target.exists():
        raise UserError(f"{target} exists; remove it, or name another file")
    held = weights.load(source)
    where = f"{source} ({'; '.join(held.notes)})" if held.notes else str(source)
    state_dict = architectures.with_our_names(held.state_dict)
    config = VictimConfig(weights=where, model=model)
    found = _recognise(state_dict, config, held.metadata.get("model", ""))
    if model not in ("", found.model):
        raise UserError(
            f"{source}: it is of a {found.model}, and not of --model {model}: that matters only "
            "where names and shapes do not tell, as with " + ", ".join(architectures.UNTOLD)
        )
    size = found.size or datasets.IMAGE_SIZE  # of those that take all sizes, any will do
    net = models.make_classifier(**found._replace(size=size)._asdict())
    fitted = _fit(net, state_dict, found, where)
    # The file keeps the dtypes of its source; they are cast when a victim is loaded.
    state_dict = weights.to_state_dict(weights.to_variables(state_dict))
    metadata = {"model": found.model, "width": str(found.width), "converted_from": source.name}
    metadata |= {k: v for k, v in held.metadata.items() if k in ("mean", "std")}
    metadata |= {name: json.dumps(value) for name, value in known.items()}
    weights.save_state_dict(target, state_dict, metadata)

    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(fitted.params))
    doubt = "" if model else architectures.doubt(held.state_dict, found)
    return (
        f"{source}: {found}, {num_params:,} parameters"
        f"\n{target}: {len(state_dict)} tensors, {target.stat().st_size:,} bytes"
        + "".join(f"\n{source}: {note}" for note in held.notes)
        + (f"\nwarning: {doubt}" if doubt else "")
    )
