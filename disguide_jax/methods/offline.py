"""Clones that learn from answers which were paid for before: a transfer set, and no query.

Not a published method: it tells what a transfer set is worth to other clones than those whose
generator made it, or to a defender. One round is one update of the clones on a uniform batch.
It goes with any configuration, of which it takes what is about clones; nothing is generated.
"""

from disguide_jax.config import Config
from disguide_jax.core import learn, replay, streams
from disguide_jax.core.exchange import Kit, Method, Round
from disguide_jax.core.types import Metrics, Stage, TrainState

REPLAY = 0  # stream of randomness


def check(config: Config) -> None:
    """Has nothing to refuse."""
    del config


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage, whose rounds cost nothing; the replay holds the whole transfer set."""
    rounds = config.offline.epochs * config.replay.size // config.batch_size
    return (Stage("offline", rounds, 0, clone_updates=1),)


def make_round(kit: Kit, stage: Stage) -> Round:
    """One update of the clones."""
    del stage

    def learn_kept(state: TrainState) -> tuple[TrainState, Metrics]:
        key = streams.of_round(state, REPLAY)
        images, answers = replay.sample(state.replay, key, kit.config.batch_size)
        clones, metrics = learn.teach(
            state.clones, kit.networks.clones, kit.tx.clones, kit.answers.loss, images, answers
        )
        return state.replace(clones=clones), metrics

    return (learn_kept,)


METHOD = Method(
    "offline",
    check,
    stages,
    make_round,
    keeps_replay=True,
    learns_from_file=True,
)
