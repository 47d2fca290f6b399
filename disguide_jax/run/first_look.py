"""How often a victim is right on real images: to be asked before a query is spent.

Images in a wrong range are the commonest mistake. What a network expects is told by the mean and
the standard deviation of pixels in [0, 1] that its training subtracted and divided by.
"""

import dataclasses

import numpy as np

from disguide_jax.errors import UserError
from disguide_jax.files import datasets
from disguide_jax.options import VictimConfig
from disguide_jax.run import copies, evaluate
from disguide_jax.victims import network

DOUBTFUL = 0.5  # accuracy below which other normalisations are tried
NUM_TRIED = 1_000  # images that they are tried with
PRE_TRANSFORM = (copies.HALF,), (copies.HALF,)

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation
RANGES: dict[str, Normalisation] = {  # whatever the number of channels
    "images in [-1, 1]": PRE_TRANSFORM,
    "images in [0, 1]": ((0.0,), (1.0,)),
    "images of 0 to 255": ((0.0,), (1 / 255,)),
}
TRAINED: dict[str, Normalisation] = {
    **{name: datasets.describe(name)[2:4] for name in ("cifar10", "svhn", "mnist")},
    "fashion_mnist": datasets.describe("fashion_mnist")[2:4],
    "cifar10, deviation of all pixels": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def report(
    config: VictimConfig, dataset: str, data_dir: str, predictions: str, input_space: str = ""
) -> str:
    """What a victim is and how often it is right, in two lines; more where that is doubtful.

    Args:
      config: where its weights are, and what they were trained with.
      dataset: whose test images it is asked about.
      data_dir: where they lie.
      predictions: a file for the classes that it names, [N] int32; "" for none.
      input_space: "pre-transform" if the network takes images in [-1, 1] as they are, which
        clones do; "post-transform" if they are normalised first; "" is what the file says.

    Raises:
      UserError: no such weights or images, they contradict each other, or the file cannot be
        written.
    """
    info = datasets.describe(dataset, data_dir)
    if input_space == "pre-transform":
        if config.mean or config.std:
            raise UserError(
                "--input_space=pre-transform: such a network takes images as they are, without "
                "--mean and --std"
            )
        mean, std = (part * info.channels for part in PRE_TRANSFORM)
        config = dataclasses.replace(config, mean=mean, std=std)
    net, variables, found = network.load_network(
        config, num_classes=info.num_classes, size=info.size, channels=info.channels
    )
    used = network.normalisation(config, info)
    test = datasets.load(dataset, "test", data_dir)

    def named(normalisation: Normalisation, images: np.ndarray) -> np.ndarray:
        mean, std = normalisation
        oracle = network.make_victim(net, variables, mean=mean, std=std, hard_labels=True)
        return evaluate.labels_of(oracle, images)

    answers = named(used, test.images)
    if predictions:
        evaluate.save_predictions(predictions, answers)
    right = int((answers == test.labels).sum())
    lines = [
        f"{config.weights}: {found.model} of width {found.width}",
        f"accuracy {right / len(answers):.4f}: {right:,} of {len(answers):,} {dataset} images",
    ]
    if right < DOUBTFUL * len(answers):
        known, labels = usual(info.channels), test.labels[:NUM_TRIED]
        right_with = {
            name: int((named(other, test.images[:NUM_TRIED]) == labels).sum())
            for name, other in known.items()
        }
        as_told = int((answers[:NUM_TRIED] == labels).sum())
        lines += advice(right_with, known, as_told, len(labels))
    return "\n".join(lines)


def usual(channels: int) -> dict[str, Normalisation]:
    """The normalisations that are in use for images of so many channels, by their names."""
    trained = {name: pair for name, pair in TRAINED.items() if len(pair[0]) == channels}
    ranges = {name: (mean * channels, std * channels) for name, (mean, std) in RANGES.items()}
    return ranges | trained


def advice(
    right_with: dict[str, int], known: dict[str, Normalisation], as_told: int, num: int
) -> list[str]:
    """Which normalisation fits, in words.

    Args:
      right_with: how many images are classified rightly with each, by its name.
      known: what they are.
      as_told: how many with the one that was used.
      num: of how many images.
    """
    best = max(right_with, key=lambda name: right_with[name])
    if right_with[best] <= as_told:
        return [f"No usual normalisation does better; tried: {', '.join(right_with)}."]
    mean, std = (" ".join(f"{value:.6g}" for value in part) for part in known[best])
    return [
        f"That is little. With --mean {mean} --std {std} ({best}) it is right on "
        f"{right_with[best] / num:.1%} of the first {num:,} images, as told on {as_told / num:.1%}."
    ]
