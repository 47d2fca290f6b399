"""DFME (Truong et al., CVPR 2021): the generator climbs the clones' error by forward differences.

One round:
1. one generator update. N images, and N more for each of the m directions, are sent to the
   victim. Generator in train mode, clones in eval mode.
2. `clones.steps` times a fresh batch from the updated generator, sent to the victim, and one
   update of the clones with it. Generator and clones in train mode.

Nothing is replayed. With several clones the gradient is the mean of theirs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from disguide_jax import updates, zeroth_order
from disguide_jax.config import Config
from disguide_jax.state import Array, Key, Metrics, Networks, Optimizers, TrainState

GENERATOR, DIRECTIONS, CLONES = range(3)  # streams of randomness
KEEPS_REPLAY = False
NEEDS_FLOAT32 = True


def check(config: Config) -> None:
    """Raises UserError for what this method cannot do."""
    zeroth_order.check(config)


def queries_per_round(config: Config) -> int:
    """Images that the victim is sent in one round."""
    return config.batch_size * (1 + config.zeroth_order.directions + config.clones.steps)


def generator_updates_per_round(config: Config) -> int:
    """Optimiser steps of the generator in one round."""
    del config
    return 1


def clone_updates_per_round(config: Config) -> int:
    """Optimiser steps of the clones in one round."""
    return config.clones.steps


def scale(estimate: zeroth_order.Estimate, *, soft_loss: str) -> Array:
    """The gradient [N, H, W, channels] in the authors' scale, which Adam hardly minds.

    With the absolute error, a mean over K already, theirs is divided by N and by K once more;
    with other losses it is the sum over the batch.
    """
    return estimate.gradient / (estimate.answers.size if soft_loss == "l1" else 1)


def make_round(
    config: Config, networks: Networks, tx: Optimizers, *, channels: int
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The pure function (state, victim) -> (state, metrics) of one round."""
    del channels
    clone_loss = updates.make_clone_loss(config.clones, labels=config.labels)
    latent_shape = config.batch_size, config.generator.latent_dim

    def update_generator(state: TrainState, victim: Any) -> tuple[TrainState, Metrics]:
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
            clones_train=False,
        )
        (grads,) = pull_back(scale(estimate, soft_loss=config.clones.soft_loss))
        state = updates.apply_generator_gradient(state, tx.generator, grads, batch_stats)
        return state, {"gen/loss": estimate.losses.mean()}

    def play_round(state: TrainState, victim: Any) -> tuple[TrainState, Metrics]:
        def update_clones(state: TrainState, key: Key) -> tuple[TrainState, Metrics]:
            state, images = make_images(state, jax.random.normal(key, latent_shape))
            state, images, answers = updates.query(state, victim, images, keep=False)
            return updates.update_clones(
                state, networks.clones, tx.clones, clone_loss, images, answers
            )

        clones_key = updates.round_key(state, CLONES)
        state, generator_metrics = update_generator(state, victim)
        keys = jax.random.split(clones_key, config.clones.steps)
        state, clone_metrics = updates.repeat(update_clones, state, keys)
        return state.replace(round=state.round + 1), generator_metrics | clone_metrics

    def make_images(state: TrainState, z: Array) -> tuple[TrainState, Array]:
        pre_tanh, batch_stats = networks.generator.apply(state.generator, z, train=True)
        generator = state.generator._replace(batch_stats=batch_stats)
        return state.replace(generator=generator), jnp.tanh(pre_tanh)

    return play_round
