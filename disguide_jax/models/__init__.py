"""Networks by name. The only package that knows Flax's module system.

| name                             | network                            | usual width              |
|----------------------------------|------------------------------------|--------------------------|
| resnet18_8x, resnet34_8x         | CIFAR ResNets, torchvision's too   | channels of the stem, 64 |
| ..._pool                         | with a max-pool after the stem     |                          |
| resnet20, 32, 44, 56             | He et al.'s for CIFAR, akamaster's | channels of the stem, 16 |
| ..._b                            | convolved shortcuts, chenyaofo's   |                          |
| wrnD_K                           | WideResNets, xternalz's            | channels of the stem, 16 |
| ..._bias                         | meliketoy's                        |                          |
| vgg11_bn, vgg13_bn, vgg16_bn, 19 | kuangliu's: one linear layer       | of the first stage, 64   |
| ..._512, ..._4096, ..._7x7       | chenyaofo's, weiaicunzai's,        |                          |
|                                  | torchvision's: three               |                          |
| mobilenet_v2, ..._tv, ..._c100   | kuangliu's, torchvision's,         | channels of the stem, 32 |
|                                  | weiaicunzai's                      |                          |
| densenet121, ..._tv, ..._c100    | likewise                           | channels of the stem, 64 |
| densenet121_tv_pool              | with a max-pool after the stem     |                          |
| lenet5, lenet5_half              | LeNet-5 and its half               | maps of conv1, 6 and 3   |
| package.module:Name              | a Flax module, see `brought`       | its own                  |

All take and make images of any size, a multiple of 4 from 8 to 224, but for LeNets and VGGs, which
take none below 32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.core import backend, mesh
from disguide_jax.core.types import Array, Key, Net, Variables
from disguide_jax.errors import UserError
from disguide_jax.models import brought, lenet, vgg, wide_resnet
from disguide_jax.models.brought import is_brought
from disguide_jax.models.dcgan import DcganDiscriminator, DcganGenerator
from disguide_jax.models.densenet import DenseNet
from disguide_jax.models.generator import Generator
from disguide_jax.models.mobilenet import KUANGLIU, TORCHVISION, WEIAICUNZAI, MobileNetV2
from disguide_jax.models.resnet import ResNet
from disguide_jax.options import MODELS, SIZES, SIZES_IN_WORDS

ANY_SIZE = SIZES[0]

CLASSIFIERS: dict[str, tuple[Callable[..., nn.Module], int, int]] = {
    # module, usual width, least size of the images
    "resnet18_8x": (functools.partial(ResNet, blocks=(2, 2, 2, 2)), 64, ANY_SIZE),
    "resnet34_8x": (functools.partial(ResNet, blocks=(3, 4, 6, 3)), 64, ANY_SIZE),
    "resnet18_8x_pool": (functools.partial(ResNet, blocks=(2, 2, 2, 2), pool=True), 64, ANY_SIZE),
    "resnet34_8x_pool": (functools.partial(ResNet, blocks=(3, 4, 6, 3), pool=True), 64, ANY_SIZE),
    **{
        f"resnet{6 * n + 2}{name}": (
            functools.partial(ResNet, blocks=(n, n, n), padded=padded),
            16,
            ANY_SIZE,
        )
        for n in (3, 5, 7, 9)
        for name, padded in (("", True), ("_b", False))
    },
    **{
        f"wrn{depth}_{factor}{name}": (
            functools.partial(wide_resnet.WideResNet, depth=depth, factor=factor, bias=bias),
            16,
            ANY_SIZE,
        )
        for depth, factor in wide_resnet.SIZES
        for name, bias in (("", False), ("_bias", True))
    },
    **{
        f"vgg{depth}_bn{name}": (
            functools.partial(vgg.Vgg, depth=depth, hidden=hidden, side=side),
            64,
            vgg.LEAST_SIZE,
        )
        for depth in vgg.STAGES
        for name, hidden, side in (("", 0, 1), ("_512", 8, 1), ("_4096", 64, 1), ("_7x7", 64, 7))
    },
    "mobilenet_v2": (functools.partial(MobileNetV2, variant=KUANGLIU), 32, ANY_SIZE),
    "mobilenet_v2_tv": (functools.partial(MobileNetV2, variant=TORCHVISION), 32, ANY_SIZE),
    "mobilenet_v2_c100": (functools.partial(MobileNetV2, variant=WEIAICUNZAI), 32, ANY_SIZE),
    "densenet121": (DenseNet, 64, ANY_SIZE),
    "densenet121_tv": (functools.partial(DenseNet, normed=True), 64, ANY_SIZE),
    "densenet121_tv_pool": (functools.partial(DenseNet, normed=True, pool=True), 64, 16),
    "densenet121_c100": (functools.partial(DenseNet, linear=True), 64, ANY_SIZE),
    "lenet5": (lenet.LeNet5, 6, lenet.LEAST_SIZE),
    "lenet5_half": (lenet.LeNet5, 3, lenet.LEAST_SIZE),
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
      model: a key of `CLASSIFIERS`, or package.module:Name.
      width: see the table above; 0 is the usual one.
      num_classes: K.
      size: height and width of the images in pixels.
      channels: of the images, 1 or 3.
      dtype: compute dtype; None computes in the dtype of parameters and images.

    Raises:
      UserError: there is no such model, it takes no images of this size or, being a user's, does
        not keep to what `brought` says.
    """
    _check_size(size)
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    if is_brought(model):
        module = brought.make(model, width=width, num_classes=num_classes, dtype=dtype)
        net = as_net(module, image)
        brought.check(model, net, image, num_classes)
        return net
    width = width or usual_width(model)
    make, _, least_size = CLASSIFIERS[model]
    if size < least_size:
        any_size = [name for name, (_, _, least) in CLASSIFIERS.items() if least <= size]
        raise UserError(
            f"{model} takes images of {least_size}x{least_size} pixels and larger, and these are "
            f"{size}x{size}; {any_size[0]} and others take them"
        )
    return as_net(make(width=width, num_classes=num_classes, dtype=dtype), image)


def usual_width(model: str) -> int:
    """The width that a classifier has unless it is told another.

    Raises:
      UserError: there is no such model.
    """
    if is_brought(model):
        return brought.usual_width(model)
    if model not in CLASSIFIERS:
        raise UserError(f"there is no model {model!r}; it must be one of {MODELS}")
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
        return Variables(variables.get("params", {}), variables.get("batch_stats", {}))

    def apply(variables: Variables, x: Array, *, train: bool) -> tuple[Array, Any]:
        mutable = ["batch_stats"] if train else []
        x = mesh.over_batch(x)
        out, updated = module.apply(variables._asdict(), x, train=train, mutable=mutable)
        return out, updated.get("batch_stats", {}) if train else variables.batch_stats

    return Net(init, apply)


def stack(net: Net, num: int) -> Net:
    """`num` independently initialised copies on axis 0: x [N, ...] -> out [num, N, ...]."""

    def init(key: Key) -> Variables:
        return jax.vmap(net.init)(jax.random.split(key, num))

    def apply(variables: Variables, x: Array, *, train: bool) -> tuple[Array, Any]:
        one = functools.partial(net.apply, train=train)
        if not backend.stacks_are_copied():
            return jax.vmap(one, in_axes=(0, None))(variables, x)
        each = [one(jax.tree.map(lambda leaf, i=i: leaf[i], variables), x) for i in range(num)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

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
