"""What was copied, for use: the clones of a finished run as one function."""

import functools
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from disguide_jax import models
from disguide_jax.core import pixels
from disguide_jax.core.types import Array, Net, Variables
from disguide_jax.errors import UserError
from disguide_jax.files import architectures, datasets, weights, workdir
from disguide_jax.files.architectures import Architecture
from disguide_jax.options import VictimConfig
from disguide_jax.run import evaluate
from disguide_jax.victims import network

HALF = 0.5  # mean and standard deviation that take pixels in [0, 1] to [-1, 1]


class Copy(struct.PyTreeNode):
    """The soft vote of clones (Section 3), a pytree that can be jitted and differentiated."""

    clones: network.Victim  # answers with probabilities of every clone, [C, N, K]

    def __call__(self, images: Array) -> Array:
        """Classifies a batch of images.

        Args:
          images: [N, H, W, channels], uint8 or floats in [-1, 1].

        Returns:
          Probabilities [N, K], the mean of the clones'.
        """
        return self.clones(pixels.decode(jnp.asarray(images))).mean(axis=0)


class _Kept(NamedTuple):
    """The clones of a workdir, and what it says of their run."""

    net: Net  # images [N, H, W, channels] -> logits [C, N, K]
    variables: Variables  # leaves [C, ...]
    found: Architecture
    config: dict[str, Any]  # of the run


def load_clones(place: str | os.PathLike[str], *, model: str = "") -> Copy:
    """The clones that a run has left in its workdir, as one function.

    They take images in their own input space: those of a run with `victim.input_space`
    "post-transform" are normalised first, as the attacker did it.

    Args:
      place: the workdir.
      model: clones of a Flax module of one's own are package.module:Name, which is imported.

    Raises:
      UserError: there are no clones, they are damaged, or of a module that is not named.
    """
    kept = _read(pathlib.Path(place), model)
    return Copy(_oracle(kept, knows_transform=False))


def report(
    place: pathlib.Path, dataset: str, data_dir: str, predictions: str, model: str = ""
) -> str:
    """How good the clones of a workdir are, in a few lines.

    Args:
      place: the workdir.
      dataset: whose test images they are tested on; "" is that of their run.
      data_dir: where they lie; "" is as for their run.
      predictions: a file for the classes that their soft vote names, [N] int32; "" for none.
      model: see `load_clones`.

    Raises:
      UserError: there are no such clones or images, or the file cannot be written.
    """
    kept = _read(place, model)
    name = dataset or kept.config["dataset"]
    if not name:
        raise UserError(f"{place}: its run had no data set; name one with --dataset")
    data_dir = data_dir or kept.config["data_dir"]
    _check(kept, name, datasets.describe(name, data_dir))
    test = datasets.load(name, "test", data_dir)
    victim_labels = _victim_labels(kept, test.images)
    shown = test.labels if victim_labels is None else victim_labels
    test_set = evaluate.make_test_set(test.images, test.labels, shown)
    knowing = _oracle(kept, knows_transform=True)  # only its input space counts here
    scores = evaluate.make_evaluate(kept.net, knowing)(kept.variables, test_set)
    if predictions:
        vote = jax.jit(lambda copy, images: copy(images).argmax(-1).astype(jnp.int32))
        copy = Copy(_oracle(kept, knows_transform=False))
        named = [vote(copy, batch) for batch in test_set.images]
        evaluate.save_predictions(predictions, np.concatenate(named)[: len(test.images)])
    clones = ", ".join(f"{accuracy:.4f}" for accuracy in scores.clone_accuracy)
    found = kept.found
    right = round(scores.soft_vote_accuracy * len(test.images))
    return (
        f"{place}: {len(scores.clone_accuracy)} clones, {found.model} of width {found.width}\n"
        f"soft vote  {scores.soft_vote_accuracy:.4f}: {right:,} of {len(test.images):,} {name} "
        f"images\nhard vote  {scores.hard_vote_accuracy:.4f}\nclones     {clones}"
        + (f"\nfidelity   {scores.fidelity:.4f}" if victim_labels is not None else "")
    )


def _read(place: pathlib.Path, model: str) -> _Kept:
    started = workdir.read_started(place) if place.is_dir() else None
    if started is None:
        raise UserError(f"{place.absolute()} is no workdir: there is no config.json in it")
    numbers = [re.fullmatch(r"clone_(\d+)\.safetensors", p.name) for p in place.glob("clones/*")]
    paths = [
        place / "clones" / f"clone_{i}.safetensors" for i in sorted(int(n[1]) for n in numbers if n)
    ]
    if not paths:
        raise UserError(
            f"{place.absolute()} has no clones/clone_0.safetensors: a run writes its clones when "
            "it ends. Run its command again, and it continues."
        )
    state_dicts = [weights.load_state_dict(path) for path in paths]
    found = _architecture(state_dicts[0], str(paths[0]), started["config"], model)
    size = found.size or datasets.IMAGE_SIZE  # those that take all sizes have equal weights
    net, stacked = _nets(found._replace(size=size), len(paths))
    template = jax.eval_shape(net.init, jax.random.key(0))
    fitting = [
        weights.fit(state_dict, template, str(path))
        for state_dict, path in zip(state_dicts, paths, strict=True)
    ]
    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fitting)
    return _Kept(stacked, variables, found, started["config"])


@functools.lru_cache(8)  # what is compiled for one copy serves the next of its kind
def _nets(found: Architecture, num: int) -> tuple[Net, Net]:
    """One clone, and so many."""
    net = models.make_classifier(**found._asdict())
    return net, models.stack(net, num)


def _architecture(
    state_dict: weights.StateDict, where: str, config: dict[str, Any], model: str
) -> Architecture:
    trained = config["clones"]["model"]
    if not models.is_brought(trained):
        return architectures.taken_as(architectures.recognise(state_dict, where), trained)
    if model != trained:  # a file may not choose what is imported, which runs it
        raise UserError(
            f"{where}: its run says that it is of {trained}, a Flax module that is not this "
            f"project's. If you trust that module, name it as the model."
        )
    victim, size = config["victim"], config["victim"]["image_size"]
    info = datasets.Info(victim["num_classes"], victim["channels"], (), (), size)
    if config["dataset"]:
        info = datasets.describe(config["dataset"], config["data_dir"])
    width = config["clones"]["width"]
    return Architecture(model, width, info.channels, info.num_classes, info.size)


def _check(kept: _Kept, name: str, info: datasets.Info) -> None:
    wanted = kept.found
    for key, meant in (("channels", wanted.channels), ("num_classes", wanted.num_classes)):
        if getattr(info, key) != meant:
            raise UserError(f"{name}: {key} is {getattr(info, key)}, and the clones' is {meant}")
    if wanted.size not in (0, info.size):
        raise UserError(
            f"{name}: images of {info.size}x{info.size} pixels, and the clones take "
            f"{wanted.size}x{wanted.size}"
        )


def _oracle(kept: _Kept, *, knows_transform: bool) -> network.Victim:
    mean, std = own_normalisation(kept.config["victim"], kept.found.channels)
    return network.make_victim(
        kept.net,
        kept.variables,
        mean=mean,
        std=std,
        hard_labels=False,
        knows_transform=knows_transform,
    )


def own_normalisation(
    victim: dict[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1] with which clones take their images.

    Args:
      victim: the group of the configuration, as plain values, of the run that they are from.
      channels: of the images.
    """
    if victim["input_space"] == "post-transform":
        return tuple(victim["mean"]), tuple(victim["std"])
    return (HALF,) * channels, (HALF,) * channels


def _victim_labels(kept: _Kept, images: np.ndarray) -> np.ndarray | None:
    """What the victim says of images [M, H, W, channels]; None if its weights are not at hand."""
    said = kept.config["victim"]
    config = VictimConfig(said["weights"], model=said["model"], width=said["width"])
    try:
        net, variables, _ = network.load_network(
            config,
            num_classes=kept.found.num_classes,
            size=images.shape[1],
            channels=kept.found.channels,
        )
    except UserError:  # an endpoint, or a file that has gone
        return None
    mean, std = tuple(said["mean"]), tuple(said["std"])
    victim = network.make_victim(net, variables, mean=mean, std=std, hard_labels=True)
    return evaluate.labels_of(victim, images)
