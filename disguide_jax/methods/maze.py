"""MAZE (Kariyappa et al., CVPR 2021): forward differences with many directions, and replay.

One round:
1. one generator update. N images, and N more for each of the m directions, are sent to the
   victim. Generator and clones in train mode.
2. one update of the clones with those N images and their answers, which are paid already, and
   `clones.steps` - 1 with fresh batches from the updated generator. The last batch is stored.
3. `replay.batches` updates of the clones with batches from the replay.

All networks are in train mode throughout. With several clones the gradient is the mean of theirs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from disguide_jax import replay, updates, zeroth_order
from disguide_jax.config import Config
from disguide_jax.state import Array, Key, Metrics, Networks, Optimizers, TrainState

GENERATOR, DIRECTIONS, CLONES, REPLAY = range(4)  # streams of randomness
KEEPS_REPLAY = True
NEEDS_FLOAT32 = True


def check(config: Config) -> None:
    """Raises UserError for what this method cannot do."""
    zeroth_order.check(config)


def queries_per_round(config: Config) -> int:
    """Images that the victim is sent in one round."""
    return config.batch_size * (1 + config.zeroth_order.directions + config.clones.steps - 1)


def generator_updates_per_round(config: Config) -> int:
    """Optimiser steps of the generator in one round."""
    del config
    return 1


def clone_updates_per_round(config: Config) -> int:
    """Optimiser steps of the clones in one round."""
    return config.clones.steps + config.replay.batches


def make_round(
    config: Config, networks: Networks, tx: Optimizers, *, channels: int
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The pure function (state, victim) -> (state, metrics) of one round."""
    del channels
    clone_loss = updates.make_clone_loss(config.clones, labels=config.labels)
    latent_shape = config.batch_size, config.generator.latent_dim

    def update_generator(
        state: TrainState, victim: Any
    ) -> tuple[TrainState, zeroth_order.Estimate]:
        z = jax.random.normal(updates.round_key(state, GENERATOR), latent_shape)
        pre_tanh, pull_back, batch_stats = jax.vjp(
            lambda params: networks.generator.apply(
                state.generator._replace(params=params), z, train=True
            ),
            state.generator.params,
            has_aux=True,
        )
        directions = zeroth_order.draw_directions(
            updates.round_key(state, DIRECTIONS),
            config.zeroth_order.directions,
            pre_tanh.shape,
            pre_tanh.dtype,
        )
        state, estimate = zeroth_order.estimate_gradient(
            state,
            networks.exact_clones,
            victim,
            pre_tanh,
            directions,
            loss_fn=lambda logits, answers: -clone_loss(logits, answers),
            epsilon=config.zeroth_order.epsilon,
            clones_train=True,
        )
        (grads,) = pull_back(estimate.gradient / config.batch_size)
        state = updates.apply_generator_gradient(state, tx.generator, grads, batch_stats)
        return state, estimate

    def play_round(state: TrainState, victim: Any) -> tuple[TrainState, Metrics]:
        def update_clones(
            state: TrainState, images: Array, answers: Array
        ) -> tuple[TrainState, Metrics]:
            return updates.update_clones(
                state, networks.clones, tx.clones, clone_loss, images, answers
            )

        def fresh_step(carry: tuple, key: Key) -> tuple[tuple, Metrics]:
            state, *_ = carry
            z = jax.random.normal(key, latent_shape)
            pre_tanh, batch_stats = networks.generator.apply(state.generator, z, train=True)
            state = state.replace(generator=state.generator._replace(batch_stats=batch_stats))
            state, *batch = updates.query(state, victim, jnp.tanh(pre_tanh), keep=False)
            state, metrics = update_clones(state, *batch)
            return (state, *batch), metrics

        def replay_step(state: TrainState, key: Key) -> tuple[TrainState, Metrics]:
            return update_clones(state, *replay.sample(state.replay, key, config.batch_size))

        clones_key, replay_key = (updates.round_key(state, s) for s in (CLONES, REPLAY))
        state, estimate = update_generator(state, victim)
        state, metrics = update_clones(state, estimate.images, estimate.answers)
        carry = state, estimate.images, estimate.answers
        fresh_keys = jax.random.split(clones_key, config.clones.steps - 1)
        (state, *batch), fresh_metrics = updates.repeat(fresh_step, carry, fresh_keys)
        state = state.replace(replay=replay.insert(state.replay, *batch))
        replay_keys = jax.random.split(replay_key, config.replay.batches)
        state, replay_metrics = updates.repeat(replay_step, state, replay_keys)

        metrics |= fresh_metrics
        if replay_metrics:
            metrics["clones/replay_loss"] = replay_metrics["clones/loss"]
        metrics["gen/loss"] = estimate.losses.mean()
        return state.replace(round=state.round + 1), metrics

    return play_round
