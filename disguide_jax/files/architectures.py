"""Which classifier a state dict belongs to, by its names and shapes, however a zoo spells them.

Zoos that compute the same thing differ in names: `with_our_names` gives all one spelling, which is
that of the modules in `disguide_jax/models` (kuangliu's, and of WideResNets xternalz's). What
differs in what it computes keeps another name, or another shape, by which `recognise` tells it.
`UNSEEN` has what neither tells.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from disguide_jax.errors import UserError, listed
from disguide_jax.options import MODELS

StateDict = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


class Architecture(NamedTuple):
    """What the weights of a classifier say about it."""

    model: str  # a name in `disguide_jax.models`
    width: int  # channels after the first convolution
    channels: int  # of the images
    num_classes: int
    size: int = 0  # height and width of the images in pixels; 0: the network takes all

    def __str__(self) -> str:
        size = f", {self.size}x{self.size} pixels" if self.size else ""
        return (
            f"{self.model}, width {self.width}, {self.channels} channels{size}, "
            f"{self.num_classes} classes"
        )


# --- Names ------------------------------------------------------------------

BLOCK_OF_MOBILENET = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
FIRST_OF_STAGE = {2: 1, 3: 3, 4: 6, 5: 10, 6: 13}  # among all blocks
SEQUENCE_OF_DENSENET = {0: "bn1", 2: "conv1", 3: "bn2", 5: "conv2"}

RENAMINGS: dict[str, dict[str, str]] = {
    # A name that tells a spelling: what names begin with, # for a number, and begin with here,
    # {0} for the first number, {0:-1} for the one before it.
    "layer1.0.conv1.weight": {  # ResNets of torchvision, huyvnphan and chenyaofo
        "layer#.#.downsample.#.": "layer{0}.{1}.shortcut.{2}.",
        "fc.": "linear.",
    },
    "conv2_x.0.residual_function.0.weight": {  # ResNets of weiaicunzai
        "conv1.0.": "conv1.",
        "conv1.1.": "bn1.",
        "conv#_x.#.residual_function.0.": "layer{0:-1}.{1}.conv1.",
        "conv#_x.#.residual_function.1.": "layer{0:-1}.{1}.bn1.",
        "conv#_x.#.residual_function.3.": "layer{0:-1}.{1}.conv2.",
        "conv#_x.#.residual_function.4.": "layer{0:-1}.{1}.bn2.",
        "conv#_x.#.shortcut.#.": "layer{0:-1}.{1}.shortcut.{2}.",
        "fc.": "linear.",
    },
    "layer1.0.conv1.bias": {  # WideResNets of meliketoy
        "layer#.#.shortcut.0.": "block{0}.layer.{1}.convShortcut.",
        "layer#.#.": "block{0}.layer.{1}.",
        "linear.": "fc.",
    },
    "classifier.5.weight": {"classifier.5.": "classifier.6."},  # weiaicunzai's VGGs before 2020
    "features.1.conv.0.0.weight": {  # MobileNetV2 of torchvision, huyvnphan and chenyaofo
        "features.0.0.": "conv1.",
        "features.0.1.": "bn1.",
        "features.18.0.": "conv2.",
        "features.18.1.": "bn2.",
        "features.1.conv.0.0.": "layers.0.conv2.",
        "features.1.conv.0.1.": "layers.0.bn2.",
        "features.1.conv.1.": "layers.0.conv3.",
        "features.1.conv.2.": "layers.0.bn3.",
        "features.#.conv.0.0.": "layers.{0:-1}.conv1.",
        "features.#.conv.0.1.": "layers.{0:-1}.bn1.",
        "features.#.conv.1.0.": "layers.{0:-1}.conv2.",
        "features.#.conv.1.1.": "layers.{0:-1}.bn2.",
        "features.#.conv.2.": "layers.{0:-1}.conv3.",
        "features.#.conv.3.": "layers.{0:-1}.bn3.",
        "classifier.1.": "linear.",
    },
    "stage2.0.residual.0.weight": {  # MobileNetV2 of weiaicunzai
        "pre.0.": "conv1.",
        "pre.1.": "bn1.",
        "conv1.0.": "conv2.",
        "conv1.1.": "bn2.",
        "conv2.": "linear.",
        **{f"stage1.residual.{i}.": f"layers.0.{n}." for i, n in BLOCK_OF_MOBILENET.items()},
        **{f"stage7.residual.{i}.": f"layers.16.{n}." for i, n in BLOCK_OF_MOBILENET.items()},
        **{
            f"stage{stage}.#.residual.{i}.": f"layers.{{0:+{first}}}.{name}."
            for stage, first in FIRST_OF_STAGE.items()
            for i, name in BLOCK_OF_MOBILENET.items()
        },
    },
    "features.denseblock1.denselayer1.conv1.weight": {  # DenseNets of torchvision and huyvnphan
        "features.conv0.": "conv1.",
        "features.norm0.": "bn1.",
        "features.denseblock#.denselayer#.norm#.": "dense{0}.{1:-1}.bn{2}.",
        "features.denseblock#.denselayer#.conv#.": "dense{0}.{1:-1}.conv{2}.",
        "features.transition#.norm.": "trans{0}.bn.",
        "features.transition#.conv.": "trans{0}.conv.",
        "features.norm5.": "bn.",
        "classifier.": "linear.",
    },
    "features.dense_block_layer_0.bottle_neck_layer_0.bottle_neck.0.weight": {  # of weiaicunzai
        **{
            f"features.{block}#.bottle_neck_layer_#.bottle_neck.{i}.": f"dense{{0:+1}}.{{1}}.{n}."
            for block in ("dense_block_layer_", "dense_block")
            for i, n in SEQUENCE_OF_DENSENET.items()
        },
        "features.transition_layer_#.down_sample.0.": "down{0:+1}.bn.",
        "features.transition_layer_#.down_sample.1.": "down{0:+1}.conv.",
        "features.bn.": "bn.",
    },
}


class _Number(int):
    """Its format is what is added to it."""

    def __format__(self, added: str) -> str:
        return str(self + int(added or 0))


def with_our_names(arrays: StateDict) -> StateDict:
    """A state dict in the one spelling that `disguide_jax/models` has."""
    told_by = [name for name in RENAMINGS if name in arrays]
    if not told_by:
        return arrays
    rules = [
        (re.compile(re.escape(begin).replace(r"\#", r"(\d{1,3})")), becomes)
        for begin, becomes in RENAMINGS[told_by[-1]].items()
    ]

    def ours(name: str) -> str:
        for begin, becomes in rules:
            if match := begin.match(name):
                return becomes.format(*map(_Number, match.groups())) + name[match.end() :]
        return name

    return {ours(name): array for name, array in arrays.items()}


# --- Recognition ------------------------------------------------------------


class Family(NamedTuple):
    """Architectures that differ in depth, and in a few names or shapes."""

    blocks: str  # what their first layers are called; the first group is their stage
    depths: dict[tuple[int, ...], str]  # blocks of each stage: model
    first: str = "conv1.weight"  # the first convolution, [width, channels, height, width]
    last: str = "linear.weight"  # the last layer, [num_classes, features, ...]
    variant: Callable[[Shapes, int], str | None] = lambda shapes, width: ""
    # of shapes and width: how the model's name goes on; None: it is another network


def _wide(shapes: Shapes, width: int) -> str | None:
    channels = shapes.get("block1.layer.0.conv1.weight", (0,))[0]
    return f"_{channels // width}" + ("_bias" if "conv1.bias" in shapes else "")


def _vgg(shapes: Shapes, width: int) -> str | None:
    """By the first of three linear layers, [hidden, channels * side * side], if there are any."""
    hidden, features = shapes.get("classifier.0.weight", (0, 8 * width))
    return {
        (0, 8): "",
        (8, 8): "_512",
        (64, 8): "_4096",
        (64, 8 * 49): "_7x7",
    }.get((hidden // width, features // width))


def _mobilenet(shapes: Shapes, width: int) -> str | None:
    if "conv1.bias" in shapes:
        return "_c100"
    return "" if "layers.0.conv1.weight" in shapes else "_tv"


def _densenet(shapes: Shapes, width: int) -> str | None:
    if "down1.bn.weight" in shapes:
        return "_c100"
    return "_tv" if "bn1.weight" in shapes else ""


FAMILIES = (
    Family(
        r"layer(\d+)\.\d+\.conv1\.weight",
        {(2, 2, 2, 2): "resnet18_8x", (3, 4, 6, 3): "resnet34_8x"},
    ),
    Family(
        r"layer(\d+)\.\d+\.conv1\.weight",
        {(n, n, n): f"resnet{6 * n + 2}" for n in (3, 5, 7, 9)},
        variant=lambda shapes, width: "_b" if "layer2.0.shortcut.0.weight" in shapes else "",
    ),
    Family(
        r"block(\d+)\.layer\.\d+\.conv1\.weight",
        {(n, n, n): f"wrn{6 * n + 4}" for n in range(1, 7)},
        last="fc.weight",
        variant=_wide,
    ),
    *(
        Family(
            r"features(\.)\d+\.running_mean",
            {(8,): "vgg11_bn", (10,): "vgg13_bn", (13,): "vgg16_bn", (16,): "vgg19_bn"},
            first="features.0.weight",
            last=last,
            variant=_vgg,
        )
        for last in ("classifier.weight", "classifier.6.weight")
    ),
    Family(
        r"layers(\.)\d+\.conv3\.weight",
        {(17,): "mobilenet_v2"},
        variant=_mobilenet,
    ),
    Family(
        r"dense(\d+)\.\d+\.conv1\.weight",
        {(6, 12, 24, 16): "densenet121"},
        variant=_densenet,
    ),
)
LENETS = {6: "lenet5", 3: "lenet5_half"}  # by width


def recognise(state_dict: StateDict, where: str) -> Architecture:
    """The classifier that a state dict belongs to, by the few names and shapes that tell.

    `weights.fit` checks all the others.

    Args:
      state_dict: names, in our spelling, and arrays.
      where: what errors call it, such as the file it came from.

    Raises:
      UserError: it is none of this project's classifiers.
    """
    shapes = {name: tuple(np.shape(array)) for name, array in state_dict.items()}
    candidates = (*(_of_family(family, shapes) for family in FAMILIES), _lenet(shapes))
    found = next((candidate for candidate in candidates if candidate), None)
    if found:
        return found
    blocks = _blocks(r"layer(\d+)\.\d+\.conv1\.weight", shapes)
    raise UserError(
        f"{where}: not the weights of a classifier that this project knows.{looks_like(state_dict)}"
        f"\nThere are {MODELS}."
        f"\nFound {', '.join(map(str, blocks)) or 'no'} blocks layerN.M and the tensors"
        f"\n  {listed([f'{name} {list(shape)}' for name, shape in shapes.items()])}"
    )


def _blocks(pattern: str, shapes: Shapes) -> tuple[int, ...]:
    stages = [match[1] for name in shapes if (match := re.fullmatch(pattern, name))]
    return tuple(stages.count(stage) for stage in sorted(set(stages)))


def _of_family(family: Family, shapes: Shapes) -> Architecture | None:
    model = family.depths.get(_blocks(family.blocks, shapes))
    match shapes.get(family.first), shapes.get(family.last):
        case (width, channels, 1 | 3, 1 | 3), (num_classes, _, *_) if model and width:
            variant = family.variant(shapes, width)
            if variant is not None:
                return Architecture(model + variant, width, channels, num_classes)
    return None


def _lenet(shapes: Shapes) -> Architecture | None:
    names = ("conv1.weight", "conv3.weight", "fc1.weight", "fc2.weight", "fc3.weight")
    match tuple(map(shapes.get, names)):
        case (
            (width, channels, 5, 5),
            (_, _, 5, 5),
            (_, inputs),
            (num_classes, _),
            None,
        ) if width in LENETS:
            side = math.isqrt(inputs // (20 * width))  # of the 20 * width last maps
            if side and inputs == 20 * width * side**2:
                size = 4 * side + 28
                return Architecture(LENETS[width], width, channels, num_classes, size)
    return None


# --- What names and shapes do not tell --------------------------------------

POOL = "a max-pool after the stem"
UNSEEN = {  # model: what it lacks and others have that look the same, and their name
    "resnet18_8x": (POOL, "resnet18_8x_pool"),
    "resnet34_8x": (POOL, "resnet34_8x_pool"),
    "densenet121_tv": (POOL, "densenet121_tv_pool"),
    "mobilenet_v2_tv": ("the strides for ImageNet", ""),
}
UNTOLD = tuple(other for _, other in UNSEEN.values() if other)
OF_TORCHVISION = re.compile(r"layer\d+\.0\.downsample\.|features\.(denseblock1|1\.conv\.0)\.")


def taken_as(found: Architecture, model: str) -> Architecture:
    """What was found or, where names and shapes do not tell it from that, the model asked for."""
    _, other = UNSEEN.get(found.model, ("", ""))
    return found._replace(model=model) if model and model == other else found


def doubt(names: Mapping[str, object], found: Architecture) -> str:
    """A warning where names are torchvision's, which do not tell all; otherwise "".

    Args:
      names: of the state dict, in its own spelling.
      found: what it was taken for.
    """
    if found.model not in UNSEEN or not any(map(OF_TORCHVISION.match, names)):
        return ""
    lacking, other = UNSEEN[found.model]
    how = f": if it is near chance, say --model {other}" if other else ""
    return (
        f"names as torchvision's do not tell whether it has {lacking}; it is taken for a "
        f"{found.model}, which has not. Evaluate it first{how}"
    )


def looks_like(state_dict: StateDict) -> str:
    """What a state dict has that no architecture here has, in a line of its own, or ""."""
    shapes = {name: tuple(np.shape(array)) for name, array in state_dict.items()}
    stem = next((shape for shape in shapes.values() if len(shape) == 4), ())
    conv, norm = (shapes.get(f"layer2.0.{name}.weight", ()) for name in ("conv1", "bn1"))
    second = shapes.get("layer1.0.conv2.weight", ())
    lenet = stem[2:] == (5, 5)
    tutorials = lenet and "fc3.weight" in shapes and "conv3.weight" not in shapes
    signs = {
        "bottleneck blocks, as ResNet-50 has": r"^layer1\.0\.conv3\.|\.residual_function\.6\.",
        "pre-activation blocks, whose batch norms come before the convolutions": (
            len(conv) == 4 and norm == conv[1:2] != conv[:1]
        ),
        "a stem of 7x7 pixels, as networks for ImageNet have": stem[2:] == (7, 7),
        "convolutions in groups, as ResNeXts have": len(second) == 4 and second[1] < second[0],
        "the LeNet of PyTorch's tutorial, two convolutions and fc1 to fc3": tutorials,
        "a LeNet, but those here have conv1.weight [6 or 3, channels, 5, 5], conv2, conv3, "
        "fc1.weight [features, 120 or 60 times a square] and fc2": lenet and not tutorials,
        "a VGG or an AlexNet without batch norm": (
            "features.0.weight" in shapes and not any("running_mean" in name for name in shapes)
        ),
        "squeeze and excitation": r"\.(se|squeeze|excitation|se_module)\.|^layer1\.0\.fc1\.",
        "a vision transformer": r"cls_token|class_token|pos_embed|patch_embed|\.attn\.",
        "a ConvNeXt": r"\.dwconv\.|layer_scale|\.gamma$",
        "an Inception or a GoogLeNet": r"[Ii]nception|^Mixed_|^a3\.b1\.",
        "an EfficientNet": r"^_blocks\.0\._|^_conv_stem|^features\.1\.0\.block\.",
        "a network without convolutions": not stem,
    }
    found = [
        words
        for words, sign in signs.items()
        if (any(re.search(sign, name) for name in shapes) if isinstance(sign, str) else sign)
    ]
    if not found:
        return ""
    return (
        f"\nIt looks like {'; '.join(found)}. Bring it as a Flax module, "
        "--config.victim.model=package.module:Name, or as a function of your own, "
        "--config.victim.endpoint=python:package.module:function."
    )
