"""Dual Students (Beetham et al., 2023): the generator seeks what two clones disagree on.

One round:
1. one generator update on the clones' distance on logits; no query. Generator in train mode,
   clones in eval mode.
2. `clones.steps` times a fresh batch from the updated generator, sent to the victim, and one
   update of the clones with it. Generator and clones in train mode.

Nothing is replayed, and nothing else is in the generator's loss.
"""

from typing import Any

import jax

from disguide_jax.config import Config
from disguide_jax.core import images as core_images
from disguide_jax.core import learn, losses, streams
from disguide_jax.core.exchange import Exchange, Kit, Method, Round
from disguide_jax.core.types import Array, Key, Metrics, Stage, TrainState, Variables
from disguide_jax.errors import UserError

GENERATOR, CLONES = range(2)  # streams of randomness


def check(config: Config) -> None:
    """Raises UserError for what this method cannot do."""
    if config.num_clones != 2:
        raise UserError(
            f"config.num_clones is {config.num_clones}; dual_students needs exactly 2 clones, "
            "because its generator is trained on the distance between them"
        )


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage, in which a round costs `clones.steps` batches."""
    steps = config.clones.steps
    queries = steps * config.batch_size
    rounds = config.query_budget // queries
    return (Stage("extraction", rounds, queries, generator_updates=1, clone_updates=steps),)


def make_round(kit: Kit, stage: Stage) -> Round:
    """A generator update, then fresh batches."""
    del stage
    config, networks, tx = kit.config, kit.networks, kit.tx

    def make_images(state: TrainState, params: Any, key: Key) -> tuple[Array, Any]:
        latent_dim = config.generator.latent_dim
        drawn = core_images.draw_latent(key, config.batch_size, latent_dim, kit.task.channels)
        return core_images.generate(
            networks.generator,
            Variables(params, state.generator.batch_stats),
            *drawn,
            gray_every=config.generator.gray_every,
            train=True,
        )

    def update_generator(state: TrainState) -> tuple[TrainState, Metrics]:
        key = streams.of_round(state, GENERATOR)

        def loss_fn(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
            images, batch_stats = make_images(state, params, key)
            logits, _ = networks.clones.apply(state.clones.variables, images, train=False)
            return -losses.logit_distance(logits).mean(), (batch_stats, {})

        generator, loss, _ = learn.learn(state.generator, tx.generator, loss_fn)
        return state.replace(generator=generator), {"gen/loss": loss}

    def propose(state: TrainState, index: Array) -> tuple[Array, Any]:
        keys = jax.random.split(streams.of_round(state, CLONES), config.clones.steps)
        return make_images(state, state.generator.params, keys[index])

    def learn_fresh(
        state: TrainState, batch_stats: Any, images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        clones, metrics = learn.teach(
            state.clones, networks.clones, tx.clones, kit.answers.loss, images, answers
        )
        generator = state.generator._replace(batch_stats=batch_stats)
        return state.replace(generator=generator, clones=clones), metrics

    fresh = Exchange(config.batch_size, propose, learn_fresh, config.clones.steps)
    return update_generator, fresh


METHOD = Method(
    "dual_students",
    check,
    stages,
    make_round,
    ignores=(
        "generator.diversity_weight",
        "replay.",
        "zeroth_order.",
        "disguide.",
        "dfms.",
        "as_in_text",
    ),
)
