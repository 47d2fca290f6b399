"""Networks by name. The only package that knows Flax's module system.

| name                      | network                        | width                            |
|---------------------------|--------------------------------|----------------------------------|
| resnet18_8x, resnet34_8x  | CIFAR ResNets                  | channels of the stem, usually 64 |
| lenet5, lenet5_half       | LeNet-5 and its half           | feature maps of conv1, 6 and 3   |

All take and make images of any size, a multiple of 4 from 8 to 224, but for LeNets, which take
none below 32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.core.types import Array, Key, Net, Variables
from disguide_jax.errors import UserError
from disguide_jax.models.dcgan import DcganDiscriminator, DcganGenerator
from disguide_jax.models.generator import Generator
from disguide_jax.models.lenet import LEAST_SIZE, LeNet5
from disguide_jax.models.resnet import ResNet
from disguide_jax.options import SIZES, SIZES_IN_WORDS

CLASSIFIERS: dict[str, tuple[Callable[..., nn.Module], int, int]] = {
    # module, usual width, least size of the images
    "resnet18_8x": (functools.partial(ResNet, blocks=(2, 2, 2, 2)), 64, SIZES[0]),
    "resnet34_8x": (functools.partial(ResNet, blocks=(3, 4, 6, 3)), 64, SIZES[0]),
    "lenet5": (LeNet5, 6, LEAST_SIZE),
    "lenet5_half": (LeNet5, 3, LEAST_SIZE),
}

GENERATORS: dict[str, Callable[..., nn.Module]] = {"dfme": Generator, "dcgan": DcganGenerator}


def make_classifier(
    model: str,
    *,
    width: int = 0,
    num_classes: int,
    size: int,
    channels: int,
    dtype: DTypeLike | None = None,
) -> Net:
    """A classifier, images [N, size, size, channels] -> logits [N, K].

    Args:
      model: a key of `CLASSIFIERS`.
      width: see the table above; 0 is the usual one.
      num_classes: K.
      size: height and width of the images in pixels.
      channels: of the images, 1 or 3.
      dtype: compute dtype; None computes in the dtype of parameters and images.

    Raises:
      UserError: there is no such model, or it takes no images of this size.
    """
    width = width or usual_width(model)
    _check_size(size)
    module, _, least_size = CLASSIFIERS[model]
    if size < least_size:
        any_size = [name for name, (_, _, least) in CLASSIFIERS.items() if least <= size]
        raise UserError(
            f"{model} takes images of {least_size}x{least_size} pixels and larger, and these are "
            f"{size}x{size}; {' and '.join(any_size)} take them"
        )
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return as_net(module(width=width, num_classes=num_classes, dtype=dtype), image)


def usual_width(model: str) -> int:
    """The width that a classifier has unless it is told another.

    Raises:
      UserError: there is no such model.
    """
    if model not in CLASSIFIERS:
        raise UserError(f"unknown model {model!r}; there are {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[model][1]


def make_generator(
    model: str = "dfme",
    *,
    width: int,
    latent_dim: int,
    size: int,
    channels: int,
    dtype: DTypeLike | None = None,
) -> Net:
    """A generator, latent vectors [N, Z] -> images before their tanh, [N, size, size, channels].

    Args:
      model: a key of `GENERATORS`.
      width: feature maps of its last layer but one.
      latent_dim: Z.
      size: height and width of the images in pixels.
      channels: of the images, 1 or 3.
      dtype: compute dtype; None computes in the dtype of parameters and latent vectors.

    Raises:
      UserError: there is no such model, or no images of this size.
    """
    if model not in GENERATORS:
        raise UserError(f"unknown generator {model!r}; there are {', '.join(GENERATORS)}")
    _check_size(size)
    latent = jax.ShapeDtypeStruct((1, latent_dim), jnp.float32)
    module = GENERATORS[model](width=width, size=size, channels=channels, dtype=dtype)
    return as_net(module, latent)


def make_discriminator(
    *, width: int, size: int, channels: int, dtype: DTypeLike | None = None
) -> Net:
    """DCGAN's discriminator, images [N, size, size, channels] -> the logit of being real, [N].

    Args:
      width: feature maps of its first layer.
      size: height and width of the images in pixels.
      channels: of the images, 1 or 3.
      dtype: compute dtype; None computes in the dtype of parameters and images.

    Raises:
      UserError: there are no images of this size.
    """
    _check_size(size)
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return as_net(DcganDiscriminator(width=width, dtype=dtype), image)


def _check_size(size: int) -> None:
    if size not in SIZES:
        raise UserError(f"images of {size}x{size} pixels: their size must be {SIZES_IN_WORDS}")


def as_net(module: nn.Module, example: jax.ShapeDtypeStruct) -> Net:
    """A module as two pure functions, for inputs shaped like `example` but for the batch."""

    def init(key: Key) -> Variables:
        variables = module.init(key, jnp.zeros(example.shape, example.dtype), train=False)
        return Variables(variables["params"], variables.get("batch_stats", {}))

    def apply(variables: Variables, x: Array, *, train: bool) -> tuple[Array, Any]:
        mutable = ["batch_stats"] if train else []
        out, updated = module.apply(variables._asdict(), x, train=train, mutable=mutable)
        return out, updated.get("batch_stats", {}) if train else variables.batch_stats

    return Net(init, apply)


def stack(net: Net, num: int) -> Net:
    """`num` independently initialised copies on axis 0: x [N, ...] -> out [num, N, ...]."""

    def init(key: Key) -> Variables:
        return jax.vmap(net.init)(jax.random.split(key, num))

    def apply(variables: Variables, x: Array, *, train: bool) -> tuple[Array, Any]:
        one = functools.partial(net.apply, train=train)
        return jax.vmap(one, in_axes=(0, None))(variables, x)

    return Net(init, apply)


def share(net: Net, num: int) -> Net:
    """`num` independent networks in place of one, each for its part of a batch, in this order.

    Their variables are stacked on axis 0. A batch that cannot be parted evenly begins once
    more at its end: in train mode that would tell in the statistics of the last network.
    """
    if num == 1:
        return net

    def apply(variables: Variables, x: Array, *, train: bool) -> tuple[Array, Any]:
        size = -(-len(x) // num)
        each = jnp.resize(x, (num, size, *x.shape[1:]))
        out, batch_stats = jax.vmap(functools.partial(net.apply, train=train))(variables, each)
        return out.reshape(num * size, *out.shape[2:])[: len(x)], batch_stats

    return Net(stack(net, num).init, apply)
