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

from disguide_jax import models, paths
from disguide_jax.core.types import Apply, Array, Net, Variables
from disguide_jax.errors import UserError
from disguide_jax.files import datasets, weights
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
) -> tuple[Net, Variables, weights.Architecture]:
    """The victim's network and weights; its architecture is read off the weights.

    Args:
      config: where the weights are and what they must be.
      num_classes: K, of the data set.
      size: height and width of the data set's images in pixels.
      channels: of the data set's images.

    Raises:
      UserError: the weights are absent, damaged, or of another architecture or data set.
    """
    if config.weights == RANDOM_WEIGHTS:
        if not config.model:
            raise UserError(
                "config.victim.model is empty; weights that are random must be those of one of "
                + ", ".join(models.CLASSIFIERS)
            )
        width = config.width or models.usual_width(config.model)
        found = weights.Architecture(config.model, width, channels, num_classes)
    else:
        state_dict = weights.load_state_dict(weights_path(config))
        found = weights.recognise(state_dict, config.weights)
        wanted = found._replace(
            model=config.model or found.model,
            width=config.width or found.width,
            num_classes=num_classes,
            channels=channels,
        )
        for key, meant in wanted._asdict().items():
            if getattr(found, key) != meant:
                raise UserError(
                    f"{config.weights}: {key} is {getattr(found, key)!r}, "
                    f"but the configuration needs {meant!r}"
                )
        if found.size not in (0, size):
            raise UserError(
                f"{config.weights}: a {found.model} for images of {found.size}x{found.size} "
                f"pixels, but those of the data set are {size}x{size}"
            )
    net = models.make_classifier(
        found.model,
        width=found.width,
        num_classes=found.num_classes,
        size=size,
        channels=found.channels,
    )
    if config.weights == RANDOM_WEIGHTS:
        return net, jax.jit(net.init)(jax.random.key(0)), found
    template = jax.eval_shape(net.init, jax.random.key(0))
    return net, weights.fit(state_dict, template, config.weights), found


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


def convert_victim(source: pathlib.Path, target: pathlib.Path, **known: object) -> str:
    """Checks a classifier's weights and writes them as a victim's, in safetensors.

    Args:
      source: of the weights.
      target: the new file.
      **known: of mean, std and test_accuracy what its owner knows; the file keeps it.

    Returns:
      What they are, in two lines.

    Raises:
      UserError: `target` exists, or `source` is no classifier's weights.
    """
    if target.exists():
        raise UserError(f"{target} exists; remove it, or name another file")
    state_dict = weights.load_state_dict(source)
    found = weights.recognise(state_dict, str(source))
    size = found.size or datasets.IMAGE_SIZE  # of those that take all sizes, any will do
    net = models.make_classifier(**found._replace(size=size)._asdict())
    template = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    weights.fit(state_dict, template, str(source))
    # The file keeps the dtypes of its source; they are cast when a victim is loaded.
    state_dict = weights.to_state_dict(weights.to_variables(state_dict))
    metadata = {"model": found.model, "width": str(found.width), "converted_from": source.name}
    metadata |= {name: json.dumps(value) for name, value in known.items()}
    weights.save_state_dict(target, state_dict, metadata)

    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template.params))
    return (
        f"{source}: {found.model}, width {found.width}, {found.channels} channels, "
        + (f"{found.size}x{found.size} pixels, " if found.size else "")
        + f"{found.num_classes} classes, {num_params:,} parameters"
        f"\n{target}: {len(state_dict)} tensors, {target.stat().st_size:,} bytes"
    )
