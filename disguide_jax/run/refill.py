"""A replay that lies on the disk outside checkpoints: in the ledger, or in a transfer set."""

import logging

import jax
import jax.numpy as jnp

from disguide_jax.config import Config
from disguide_jax.core import pixels, replay
from disguide_jax.core.answers import to_labels
from disguide_jax.core.replay import Replay
from disguide_jax.core.types import Array, TrainState
from disguide_jax.errors import UserError
from disguide_jax.files import transfer
from disguide_jax.files.ledger import TRAINING, Ledger
from disguide_jax.methods import METHODS
from disguide_jax.run.program import Program
from disguide_jax.victims.paid import Paid

log = logging.getLogger(__name__)


def is_needed(config: Config) -> bool:
    """Whether the replay of this run is kept outside its checkpoints."""
    method = METHODS[config.method]
    return method.learns_from_file or (bool(config.victim.endpoint) and method.replays_all)


def refill(program: Program, state: TrainState, paid: Paid | None) -> TrainState:
    """A state, fresh or as a checkpoint has it, with its replay.

    Raises:
      UserError: the transfer set is absent, damaged or that of another task.
    """
    if program.method.learns_from_file:
        return state.replace(replay=from_transfer_set(program))
    if paid and is_needed(program.config):
        return state.replace(replay=from_ledger(state.replay, paid.ledger, int(state.queries)))
    return state


def from_ledger(ring: Replay, ledger: Ledger, num_queries: int) -> Replay:
    """The replay after so many training images, bit for bit as it was.

    Where the ledger has lost answers, it holds the others, and a warning says how many.

    Args:
      ring: whose shapes and types are wanted; donated.
      ledger: with every training image in the order in which they were inserted.
      num_queries: training images that had been answered.
    """
    capacity = len(ring.images)
    oldest = max(0, num_queries - capacity)
    lost = num_queries - oldest - ledger.num_answered(TRAINING, oldest, num_queries)
    if lost:
        log.warning(
            "The ledger has lost %s of the last %s answers; the clones go on with the others.",
            *(f"{lost:,}", f"{num_queries - oldest:,}"),
        )

    def put(ring: Replay, images: Array, answers: Array) -> Replay:
        return replay.insert(ring, pixels.decode(images), answers)

    insert, is_first = jax.jit(put, donate_argnums=0), True
    ring = ring.replace(head=jnp.int32(0), size=jnp.int32(0))
    for position, images, answers in ledger.answered(TRAINING, oldest, num_queries):
        if is_first and not lost:  # a part of this batch may be written over again
            ring = ring.replace(head=jnp.int32(position % capacity))
        ring, is_first = insert(ring, images, answers), False
    return ring


def from_transfer_set(program: Program) -> Replay:
    """A replay that holds what the configured file holds.

    Raises:
      UserError: there is no such file, or it is that of another task.
    """
    config, ring = program.config, program.template.replay
    kept = transfer.load(config.offline.queries)
    answers = to_labels(jnp.asarray(kept.answers)) if config.labels == "hard" else kept.answers
    for what, like, found in (
        ("images", ring.images, kept.images),
        ("answers", ring.answers, answers),
    ):
        if like.shape != found.shape:
            raise UserError(
                f"{config.offline.queries}: its {what} are {list(found.shape)}; the configuration "
                f"needs {list(like.shape)}"
            )
    images = pixels.encode(pixels.decode(jnp.asarray(kept.images)), ring.images.dtype)
    size = jnp.int32(len(images))
    return Replay(images, jnp.asarray(answers), head=jnp.int32(0), size=size)
