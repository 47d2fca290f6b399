"""Attacks without a method: images that were there before, labelled by the victim, learnt from.

They tell what a method adds. Made-up images are the baseline that costs no thought, real ones of
the victim's own kind the bound that data would give. The images are sent through the ledger,
which counts each of them, and become a transfer set; the same clones then make as many updates on
it as in a run of the method that they stand beside.
"""

import contextlib
import copy
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.config import Config
from disguide_jax.core import pixels, shapes, streams
from disguide_jax.core.types import Task
from disguide_jax.errors import Stopped, UserError
from disguide_jax.files import datasets, transfer
from disguide_jax.files.ledger import FIDELITY, TRAINING, Format, Ledger, Spent
from disguide_jax.run import answering, asked, signals
from disguide_jax.run import program as programs
from disguide_jax.victims.defences import Traced
from disguide_jax.victims.host import Count, Endpoint
from disguide_jax.victims.paid import Paid

AT_ONCE = 256  # images that are sent


class Kind(NamedTuple):
    """One source of images."""

    role: str
    images_in_words: str
    about: str
    images: Callable[[Config, Task, int], np.ndarray]  # seed and data set, number at most -> uint8


def _noise(config: Config, task: Task, num: int) -> np.ndarray:
    shape = (num, task.size, task.size, task.channels)
    levels = np.iinfo(np.uint8).max
    return np.random.default_rng(config.seed).integers(0, levels, shape, np.uint8, endpoint=True)


def _shapes(config: Config, task: Task, num: int) -> np.ndarray:
    return _drawn_shapes(jax.random.key(config.seed), task, num)


def _drawn_shapes(key: jax.Array, task: Task, num: int) -> np.ndarray:
    draw = jax.jit(lambda: shapes.draw(key, num, task.size, task.channels))
    return np.asarray(pixels.encode(draw(), jnp.dtype(jnp.uint8)))


def _real(config: Config, task: Task, num: int) -> np.ndarray:
    del task
    images = datasets.load(config.dataset, "train", config.data_dir).images
    return images[np.random.default_rng(config.seed).permutation(len(images))[:num]]


KINDS = {
    "random": Kind(
        "baseline",
        "random pixels",
        "Uniformly random pixels, labelled by the victim: what comes of no method at all.",
        _noise,
    ),
    "shapes": Kind(
        "baseline",
        "random shapes",
        "Random smooth shapes on black, labelled by the victim: what made-up images give without "
        "a generator that learns.",
        _shapes,
    ),
    "knockoff": Kind(
        "upper_bound",
        "real images",
        "Real images of the victim's own training data, labelled by the victim: what an attacker "
        "reaches who has the data. There may be fewer of them than the budget pays for.",
        _real,
    ),
}


def check(config: Config, kind: str) -> None:
    """Raises UserError for images that there cannot be."""
    if KINDS[kind].images is _real and not config.dataset:
        raise UserError("config.dataset is empty; knockoff needs real images")


class _Local:
    """A victim whose weights are at hand as an endpoint, so that a ledger counts its images."""

    def __init__(self, victim: Traced):
        self.name = "the victim"
        self._victim = victim
        self._ask = jax.jit(lambda victim, images: victim(victim.to_input_space(images)))

    def ask(self, images: np.ndarray, count: Count) -> np.ndarray:
        """Answers to uint8 images [N, H, W, channels], see `Endpoint`."""
        del count
        return np.asarray(self._ask(self._victim, pixels.decode(jnp.asarray(images))))

    def close(self) -> None:
        """Has nothing to give back."""


def buy(config: Config, kind: str, folder: pathlib.Path) -> Config:
    """Has the victim label images, and makes the run that learns from them.

    Args:
      config: of one run of the method that it stands beside, with its seed.
      kind: of KINDS.
      folder: for the ledger and the transfer set; what is there is not bought again.

    Returns:
      The same run with the method offline.

    Raises:
      UserError: the images or the victim are not there, or it fails.
      Stopped: a signal asked for it; what was answered is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bought.npz"
    if not path.exists():
        _label(copy.deepcopy(config), KINDS[kind], folder)
        transfer.export(folder, path)
    num = transfer.num_images(str(path))
    stages = programs.stages_of(programs.resolve(config))
    updates = sum(stage.num_rounds * stage.clone_updates for stage in stages)
    config = copy.deepcopy(config)
    config.method, config.offline.queries = "offline", str(path)
    config.replay.size = num  # as it will be, or a run that continues would be another
    config.batch_size = min(config.batch_size, num)
    config.offline.epochs = max(1, -(-updates * config.batch_size // num))  # rounded up
    config.guard = "off"  # no generator
    # Rounds that send nothing are counted by the images of their batches.
    learnt = config.offline.epochs * num
    config.log_every_queries = config.evaluate_every_queries = learnt
    config.checkpoint_every_queries = learnt
    return config


def _label(config: Config, kind: Kind, folder: pathlib.Path) -> None:
    """Sends images to the victim until all are answered, or the budget is spent."""
    kept_apart = asked.num_fidelity_images(config)
    victim, task, _ = asked.load(config)
    images = kind.images(config, task, config.query_budget - kept_apart)
    with _opened(config, victim, task, folder) as paid, contextlib.suppress(Spent):
        if kept_apart:  # as a run without test data has it, see paying.make_test_set
            key = jax.random.fold_in(jax.random.key(config.seed), streams.FIDELITY)
            apart = _drawn_shapes(key, task, kept_apart)
            for i in range(0, len(apart), AT_ONCE):
                paid.ask(FIDELITY, i, apart[i : i + AT_ONCE])
        for i in range(0, len(images), AT_ONCE):
            paid.ask(TRAINING, i, images[i : i + AT_ONCE])


@contextlib.contextmanager
def _opened(
    config: Config, victim: Traced | Endpoint, task: Task, folder: pathlib.Path
) -> Iterator[Paid]:
    kept = answering.make_answers(config, task.num_classes)
    endpoint = _Local(victim) if isinstance(victim, Traced) else victim
    image = (task.size, task.size, task.channels)
    format_ = Format(image, kept.shape(task.num_classes), kept.dtype.name)
    with (
        signals.stop_requests() as stop,
        contextlib.closing(endpoint),
        Ledger(folder / "ledger", format_) as ledger,
    ):

        def check_stop() -> None:
            if stop:
                raise Stopped(stop[0], "a request that was not answered")

        yield Paid(endpoint, ledger, budget=config.query_budget, check_stop=check_stop)
        check_stop()


def received(folder: pathlib.Path) -> int:
    """Images of the budget that the victim has received, each time that they were sent."""
    with Ledger.opened(folder / "ledger") as ledger:
        return ledger.received[TRAINING] + ledger.received[FIDELITY]
