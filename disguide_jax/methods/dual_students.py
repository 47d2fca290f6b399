"""Dual Students (Beetham et al., 2023): the generator seeks what two clones disagree on.

One round:
1. one generator update on the clones' distance on logits; no query. Generator in train mode,
   clones in eval mode.
2. `clones.steps` times a fresh batch from the updated generator, sent to the victim, and one
   update of the clones with it. Generator and clones in train mode.

Nothing is replayed, and nothing else is in the generator's loss.
"""

from collections.abc import Callable
from typing import Any

import jax

from disguide_jax import losses, updates
from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.state import Array, Key, Metrics, Networks, Optimizers, TrainState

GENERATOR, CLONES = range(2)  # streams of randomness
KEEPS_REPLAY = False
NEEDS_FLOAT32 = False


def check(config: Config) -> None:
    """Raises UserError for what this method cannot do."""
    if config.num_clones != 2:
        raise UserError(
            f"config.num_clones is {config.num_clones}; dual_students needs exactly 2 clones, "
            "because its generator is trained on the distance between them"
        )


def queries_per_round(config: Config) -> int:
    """Images that the victim is sent in one round."""
    return config.clones.steps * config.batch_size


def generator_updates_per_round(config: Config) -> int:
    """Optimiser steps of the generator in one round."""
    del config
    return 1


def clone_updates_per_round(config: Config) -> int:
    """Optimiser steps of the clones in one round."""
    return config.clones.steps


def make_round(
    config: Config, networks: Networks, tx: Optimizers, *, channels: int
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The pure function (state, victim) -> (state, metrics) of one round."""
    clone_loss = updates.make_clone_loss(config.clones, labels=config.labels)

    def make_images(state: TrainState, params: Any, key: Key) -> tuple[Array, Any]:
        size = config.batch_size, config.generator.latent_dim
        z, gray_channel = updates.draw_latent(key, *size, channels)
        return updates.generate(
            networks.generator,
            state.generator._replace(params=params),
            z,
            gray_channel,
            gray_every=config.generator.gray_every,
            train=True,
        )

    def update_generator(state: TrainState, key: Key) -> tuple[TrainState, Metrics]:
        def loss_fn(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
            images, batch_stats = make_images(state, params, key)
            logits, _ = networks.clones.apply(state.clones, images, train=False)
            return -losses.logit_distance(logits).mean(), (batch_stats, {})

        return updates.update_generator(state, tx.generator, loss_fn)

    def play_round(state: TrainState, victim: Any) -> tuple[TrainState, Metrics]:
        def update_clones(state: TrainState, key: Key) -> tuple[TrainState, Metrics]:
            images, batch_stats = make_images(state, state.generator.params, key)
            state = state.replace(generator=state.generator._replace(batch_stats=batch_stats))
            state, images, answers = updates.query(state, victim, images, keep=False)
            return updates.update_clones(
                state, networks.clones, tx.clones, clone_loss, images, answers
            )

        generator_key, clones_key = (updates.round_key(state, s) for s in (GENERATOR, CLONES))
        state, generator_metrics = update_generator(state, generator_key)
        keys = jax.random.split(clones_key, config.clones.steps)
        state, clone_metrics = updates.repeat(update_clones, state, keys)
        return state.replace(round=state.round + 1), generator_metrics | clone_metrics

    return play_round
