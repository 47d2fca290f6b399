"""DisGUIDE (Rosenthal et al., AAAI 2023): the generator seeks what the clones disagree on.

One round (Algorithm 1, with the modes of the authors' code):
1. g-iter generator updates on the joint loss of Equation 1; no query. Generator in train mode,
   clones in eval mode.
2. d-iter fresh batches from the updated generator in eval mode, sent to the victim and stored;
   one update of the clones with each, in train mode.
3. b updates of the clones with batches from the replay.

The paper has g-iter = d-iter = 1 and b = 3.
"""

from typing import Any

import jax
import jax.numpy as jnp

from disguide_jax.config import Config
from disguide_jax.core import choose, learn, losses, pixels, replay, shapes, streams
from disguide_jax.core import images as core_images
from disguide_jax.core.answers import soft_vote
from disguide_jax.core.exchange import Exchange, Kit, Method, Round, repeat
from disguide_jax.core.types import Array, Key, Learner, Metrics, Stage, TrainState, Variables
from disguide_jax.errors import UserError

GENERATOR, CLONES, REPLAY, AUGMENT, SHAPES = range(5)  # streams of randomness


def check(config: Config) -> None:
    """Raises UserError for what this method cannot do."""
    if config.num_clones < 2:
        raise UserError(
            f"config.num_clones is {config.num_clones}; disguide needs at least 2 clones, "
            "because its generator is trained on their disagreement"
        )


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage, in which a round costs d-iter batches."""
    queries = config.disguide.fresh_batches * config.batch_size
    return (
        Stage(
            "extraction",
            config.query_budget // queries,
            queries,
            generator_updates=config.disguide.generator_steps,
            clone_updates=config.disguide.fresh_batches + config.replay.batches,
        ),
    )


def make_round(kit: Kit, stage: Stage) -> Round:
    """Generator updates, fresh batches, replayed batches."""
    del stage
    config, clones, tx = kit.config, kit.networks.clones, kit.tx

    num_shapes = int(config.disguide.shapes * config.batch_size)

    def draw(key: Key, num: int) -> tuple[Array, Array]:
        return core_images.draw_latent(key, num, config.generator.latent_dim, kit.task.channels)

    def update_generators(state: TrainState) -> tuple[TrainState, Metrics]:
        num = config.disguide.generator_steps

        def step(generator: Learner, index: Array) -> tuple[Learner, Metrics]:
            key = streams.one_of(streams.of_round(state, GENERATOR), num, index)
            return update_generator(
                kit, generator, state.clones.variables, *draw(key, config.batch_size)
            )

        generator, metrics = repeat(step, state.generator, jnp.arange(num))
        return state.replace(generator=generator), metrics

    def propose(state: TrainState, index: Array) -> tuple[Array, tuple[()]]:
        key = streams.one_of(streams.of_round(state, CLONES), config.disguide.fresh_batches, index)
        num, candidates = config.batch_size - num_shapes, config.disguide.candidates
        images, _ = core_images.generate(
            kit.networks.generator,
            state.generator.variables,
            *draw(key, candidates * num),
            gray_every=config.generator.gray_every,
            train=False,
        )
        images = most_disputed(kit, state.clones.variables, images, num)
        if num_shapes:
            key, many = jax.random.fold_in(key, SHAPES), candidates * num_shapes
            drawn = shapes.draw(key, many, kit.task.size, kit.task.channels)
            drawn = most_disputed(kit, state.clones.variables, drawn, num_shapes)
            images = jnp.concatenate([images, drawn])
        return images, ()

    def learn_fresh(
        state: TrainState, carry: tuple[()], images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        del carry
        state = state.replace(replay=replay.insert(state.replay, images, answers))
        learner, metrics = learn.teach(
            state.clones, clones, tx.clones, kit.answers.loss, images, answers
        )
        return state.replace(clones=learner), metrics

    def learn_replayed(state: TrainState) -> tuple[TrainState, Metrics]:
        def step(learner: Learner, key: Key) -> tuple[Learner, Metrics]:
            images, answers = draw_replayed(kit, state.replay, learner.variables, key)
            images = core_images.augment(
                jax.random.fold_in(key, AUGMENT),
                images,
                padding=config.replay.crop_padding,
                flip=config.replay.flip,
                black=pixels.BLACK,
            )
            learner, replayed = learn.teach(
                learner, clones, tx.clones, kit.answers.loss, images, answers
            )
            return learner, {"clones/replay_loss": replayed["clones/loss"]}

        keys = jax.random.split(streams.of_round(state, REPLAY), config.replay.batches)
        learner, metrics = repeat(step, state.clones, keys)
        return state.replace(clones=learner), metrics

    fresh = Exchange(config.batch_size, propose, learn_fresh, config.disguide.fresh_batches)
    return update_generators, fresh, learn_replayed


def update_generator(
    kit: Kit, generator: Learner, clones: Variables, z: Array, gray_channel: Array
) -> tuple[Learner, Metrics]:
    """One generator update on Equation 1: latent batch z [N, Z], clones in eval mode."""
    config = kit.config.generator

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        images, batch_stats = core_images.generate(
            kit.networks.generator,
            Variables(params, generator.batch_stats),
            z,
            gray_channel,
            gray_every=config.gray_every,
            train=True,
        )
        logits, _ = kit.networks.clones.apply(clones, images, train=False)
        loss, terms = losses.generator_loss(logits, diversity_weight=config.diversity_weight)
        return loss, (batch_stats, {f"gen/{name}": term for name, term in terms.items()})

    learner, loss, metrics = learn.learn(generator, kit.tx.generator, loss_fn)
    return learner, metrics | {"gen/loss": loss}


def most_disputed(kit: Kit, clones: Variables, images: Array, num: int) -> Array:
    """The `num` images [N, ...] of candidates [M, ...] that the clones disagree on most.

    It is even over the classes that the clones name. To make images is free and to ask about
    them is not (CaBaGE and DualCOS, 2024). Where all are wanted they stay in their order.
    """
    if len(images) == num:
        return images
    logits, _ = kit.networks.clones.apply(clones, images, train=False)
    scores = losses.disagreement(jax.nn.softmax(logits))
    return images[choose.evenly(scores, soft_vote(logits), num)]


def draw_replayed(
    kit: Kit, ring: replay.Replay, clones: Variables, key: Key
) -> tuple[Array, Array]:
    """A replayed batch of images [N, ...] and answers, for clones that are about to learn it.

    It is uniform, or in proportion to how far the clones still are from the answers (CaBaGE,
    2024).
    """
    config = kit.config

    def distance(images: Array, answers: Array) -> Array:
        logits, _ = kit.networks.clones.apply(clones, images, train=False)
        return kit.answers.loss(logits, answers).mean(axis=0)

    if config.replay.candidates == 1:
        return replay.sample(ring, key, config.batch_size)
    return replay.sample_by(ring, key, config.batch_size, config.replay.candidates, distance)


METHOD = Method(
    "disguide",
    check,
    stages,
    make_round,
    ignores=("clones.steps", "zeroth_order.", "dfms."),
    keeps_replay=True,
    replays_all=True,
)
