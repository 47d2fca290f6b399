"""Victims as oracles: images in, probabilities or labels out, nothing else.

A victim is passed to the compiled step as an argument rather than closed over: XLA would
copy the weights into the program as constants. Any pytree that can be called with images
will do; wrap a plain function as `jax.tree_util.Partial(fn)`.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from disguide_jax import convert, models
from disguide_jax.config import EMBEDDED, RANDOM_WEIGHTS, VictimConfig
from disguide_jax.errors import UserError
from disguide_jax.state import Array, Net, Variables

ASSETS = pathlib.Path(__file__).parent / "assets"


@struct.dataclass
class Victim:
    """A classifier behind an interface that shows only its answers."""

    variables: Variables
    mean: Array  # [1, 1, 1, channels], of images in [-1, 1]
    std: Array  # [1, 1, 1, channels]
    apply: Callable = struct.field(pytree_node=False)
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
    config: VictimConfig, *, num_classes: int, channels: int, dtype: Any = None
) -> tuple[Net, Variables, convert.Architecture]:
    """The victim's network and weights; its architecture is read off the weights.

    Args:
      config: where the weights are and what they must be.
      num_classes: K, of the data set.
      channels: of the data set's images.
      dtype: compute dtype.

    Raises:
      UserError: the weights are absent, damaged, or of another architecture or data set.
    """
    if config.weights == RANDOM_WEIGHTS:
        found = convert.Architecture(config.model, config.width, channels, num_classes)
    else:
        state_dict = convert.load_state_dict(weights_path(config))
        found = convert.recognise(state_dict, config.weights)
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
    net = models.make_classifier(
        found.model,
        width=found.width,
        num_classes=found.num_classes,
        channels=found.channels,
        dtype=dtype,
    )
    if config.weights == RANDOM_WEIGHTS:
        return net, jax.jit(net.init)(jax.random.key(0)), found
    template = jax.eval_shape(net.init, jax.random.key(0))
    return net, convert.fit(state_dict, template, config.weights), found


def weights_path(config: VictimConfig) -> pathlib.Path:
    """The file that `config.weights` names.

    Raises:
      UserError: there is none; says which commands make it.
    """
    if config.weights.startswith(EMBEDDED):
        path = ASSETS / config.weights.removeprefix(EMBEDDED)
    else:
        path = pathlib.Path(config.weights)
    if path.is_file():
        return path
    how = f"\nTrain one:    {config.made_by}" if config.made_by else ""
    raise UserError(
        f"config.victim.weights: there is no file {path} (looked for {path.absolute()})."
        f"{how}"
        f"\nBring your own PyTorch weights:    python scripts/convert_victim.py IN.pt {path}"
        "\nor name another file:    --config.victim.weights=FILE"
    )


def to_labels(answers: Array) -> Array:
    """The classes [N] that answers name, probabilities [N, K] or labels [N]."""
    return answers if answers.ndim == 1 else jnp.argmax(answers, axis=-1).astype(jnp.int32)
