"""MAZE (Kariyappa et al., CVPR 2021): forward differences with many directions, and replay.

One round:
1. one generator update. N images, and N more for each of the m directions, are sent to the
   victim. Generator and clones in train mode.
2. one update of the clones with those N images and their answers, which are paid already, and
   `clones.steps` - 1 with fresh batches from the updated generator. The last batch is stored.
3. `replay.batches` updates of the clones with batches from the replay.

All networks are in train mode throughout. With several clones the gradient is the mean of theirs.
"""

from typing import Any

import jax

from disguide_jax.config import Config
from disguide_jax.core import learn, replay, streams, zeroth_order
from disguide_jax.core.exchange import Exchange, Kit, Method, Round, Step, repeat
from disguide_jax.core.types import Array, Key, Learner, Metrics, Stage, TrainState

GENERATOR, DIRECTIONS, CLONES, REPLAY = range(4)  # streams of randomness


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage, in which a round costs 1 + m + `clones.steps` - 1 batches."""
    steps = config.clones.steps
    queries = config.batch_size * (config.zeroth_order.directions + steps)
    return (
        Stage(
            "extraction",
            config.query_budget // queries,
            queries,
            generator_updates=1,
            clone_updates=steps + config.replay.batches,
        ),
    )


def make_round(kit: Kit, stage: Stage) -> Round:
    """A generator update with answers, fresh batches, replayed batches."""
    del stage
    config, clones_net, tx = kit.config, kit.networks.clones, kit.tx
    num_fresh = config.clones.steps - 1

    def teach(clones: Learner, images: Array, answers: Array) -> tuple[Learner, Metrics]:
        return learn.teach(clones, clones_net, tx.clones, kit.answers.loss, images, answers)

    def store(state: TrainState, images: Array, answers: Array) -> TrainState:
        return state.replace(replay=replay.insert(state.replay, images, answers))

    def update_both(
        state: TrainState, proposal: zeroth_order.Proposal, images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        del images
        clones, estimate = zeroth_order.ask_clones(kit, state.clones, proposal, answers, train=True)
        (grads,) = proposal.pull_back(estimate.gradient / config.batch_size)
        generator = learn.descend(state.generator, tx.generator, grads, proposal.batch_stats)
        clones, metrics = teach(clones, estimate.images, estimate.answers)
        state = state.replace(generator=generator, clones=clones)
        if num_fresh == 0:
            state = store(state, estimate.images, estimate.answers)
        return state, metrics | {"gen/loss": estimate.losses.mean()}

    def learn_fresh(
        state: TrainState, batch_stats: Any, images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        return zeroth_order.learn_fresh(kit, state, batch_stats, images, answers)

    def learn_last(
        state: TrainState, batch_stats: Any, images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        state, metrics = learn_fresh(state, batch_stats, images, answers)
        return store(state, images, answers), metrics

    def learn_replayed(state: TrainState) -> tuple[TrainState, Metrics]:
        def step(clones: Learner, key: Key) -> tuple[Learner, Metrics]:
            return teach(clones, *replay.sample(state.replay, key, config.batch_size))

        keys = jax.random.split(streams.of_round(state, REPLAY), config.replay.batches)
        clones, metrics = repeat(step, state.clones, keys)
        metrics = {"clones/replay_loss": metrics["clones/loss"]} if metrics else {}
        return state.replace(clones=clones), metrics

    def fresh(learn_from: zeroth_order.Learn, *, first: int, times: int) -> tuple[Exchange, ...]:
        if times < 1:
            return ()
        keys = {"num_keys": num_fresh, "first": first}
        return (zeroth_order.fresh(kit, CLONES, learn_from, times=times, **keys),)

    last: Step = learn_replayed
    return (
        zeroth_order.exchange(kit, GENERATOR, DIRECTIONS, update_both),
        *fresh(learn_fresh, first=0, times=num_fresh - 1),
        *fresh(learn_last, first=num_fresh - 1, times=min(num_fresh, 1)),
        last,
    )


METHOD = Method(
    "maze",
    zeroth_order.check,
    stages,
    make_round,
    ignores=(
        "generator.diversity_weight",
        "replay.candidates",
        "disguide.",
        "dfms.",
        "as_in_text",
    ),
    keeps_replay=True,
    devices_meet_in_loops=True,
)
