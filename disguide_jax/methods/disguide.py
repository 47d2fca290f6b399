"""DisGUIDE (Rosenthal et al., AAAI 2023): the generator seeks what the clones disagree on.

One round (Algorithm 1, with the modes of the authors' code):
1. one generator update on the joint loss of Equation 1; no query. Generator in train mode,
   clones in eval mode.
2. one fresh batch from the updated generator in eval mode, sent to the victim and stored;
   one update of the clones with it, in train mode.
3. b updates of the clones with batches from the replay.
"""

from collections.abc import Callable
from typing import Any

import jax

from disguide_jax import losses, replay, updates
from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.state import Array, Key, Metrics, Networks, Optimizers, TrainState

GENERATOR, CLONES, REPLAY, AUGMENT = range(4)  # streams of randomness
KEEPS_REPLAY = True
NEEDS_FLOAT32 = False


def check(config: Config) -> None:
    """Raises UserError for what this method cannot do."""
    if config.num_clones < 2:
        raise UserError(
            f"config.num_clones is {config.num_clones}; disguide needs at least 2 clones, "
            "because its generator is trained on their disagreement"
        )


def queries_per_round(config: Config) -> int:
    """Images that the victim is sent in one round."""
    return config.batch_size


def generator_updates_per_round(config: Config) -> int:
    """Optimiser steps of the generator in one round."""
    del config
    return 1


def clone_updates_per_round(config: Config) -> int:
    """Optimiser steps of the clones in one round."""
    return 1 + config.replay.batches


def make_round(
    config: Config, networks: Networks, tx: Optimizers, *, channels: int
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The pure function (state, victim) -> (state, metrics) of one round."""
    clone_loss = updates.make_clone_loss(config.clones, labels=config.labels)

    def draw(key: Key) -> tuple[Array, Array]:
        return updates.draw_latent(key, config.batch_size, config.generator.latent_dim, channels)

    def play_round(state: TrainState, victim: Any) -> tuple[TrainState, Metrics]:
        z, gray_channel = draw(updates.round_key(state, GENERATOR))
        state, generator_metrics = update_generator(
            state, networks, tx, z, gray_channel, config=config
        )

        z, gray_channel = draw(updates.round_key(state, CLONES))
        images, _ = updates.generate(
            networks.generator,
            state.generator,
            z,
            gray_channel,
            gray_every=config.generator.gray_every,
            train=False,
        )
        state, images, answers = updates.query(state, victim, images)
        state, clone_metrics = updates.update_clones(
            state, networks.clones, tx.clones, clone_loss, images, answers
        )

        # Unrolled, not scanned: a convolution's gradient in a loop is 30 times slower on CPUs.
        replay_keys = jax.random.split(updates.round_key(state, REPLAY), config.replay.batches)
        for key in replay_keys:
            images, answers = replay.sample(state.replay, key, config.batch_size)
            images = updates.augment(
                jax.random.fold_in(key, AUGMENT),
                images,
                padding=config.replay.crop_padding,
                flip=config.replay.flip,
                black=-1,
            )
            state, replay_metrics = updates.update_clones(
                state, networks.clones, tx.clones, clone_loss, images, answers
            )
            clone_metrics["clones/replay_loss"] = replay_metrics["clones/loss"]
        return state.replace(round=state.round + 1), generator_metrics | clone_metrics

    return play_round


def update_generator(
    state: TrainState,
    networks: Networks,
    tx: Optimizers,
    z: Array,
    gray_channel: Array,
    *,
    config: Config,
) -> tuple[TrainState, Metrics]:
    """One generator update on Equation 1: latent batch z [N, Z], clones in eval mode."""

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        images, batch_stats = updates.generate(
            networks.generator,
            state.generator._replace(params=params),
            z,
            gray_channel,
            gray_every=config.generator.gray_every,
            train=True,
        )
        logits, _ = networks.clones.apply(state.clones, images, train=False)
        loss, terms = losses.generator_loss(
            logits, diversity_weight=config.generator.diversity_weight
        )
        return loss, (batch_stats, {f"gen/{name}": term for name, term in terms.items()})

    return updates.update_generator(state, tx.generator, loss_fn)
