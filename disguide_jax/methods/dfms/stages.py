"""DFMS-HL (Sanyal et al., CVPR 2022): clones and a GAN that start from synthetic images.

Stages, each a number of rounds; a round is one batch:
1. gan        a DCGAN learns to make what looks like the proxy images. No query.
2. validate   generated images, labelled to choose by.
3. label      proxy images and as many generated ones, labelled once.
   offline    new clones learn from these, epoch after epoch. No query.
4. diversity  the GAN goes on, with a new discriminator, and is rewarded for classes that the
              clones name equally often. No query.
5. label, offline    again, with the generator as it is now.
6. validate          again; here before 5, which it costs the same, so that 5 can use it.
7. alternate  with what is left of the budget: a batch of generated images is sent, the clones
              learn from it, then the generator from clones and discriminator, then the
              discriminator.
8. validate, choose  with `dfms.validate_last`, not in the paper: images of the generator as it
              is at the end judge the last averages and the best clones so far. A generator that
              is still poor at 6 makes images on which clones are best before they are good.

`state.clones` are those in training. The result is `extra.best`: those that agree most often
with the victim on the validation images, which are paid for. In stage 7 exponential averages
of the clones are candidates, too. Generated images that were labelled are not stored: they are
made again from their number by the generator of that time.

The authors published hard labels only. With soft labels this is a variant of this project's
own, which replaces the clones' cross-entropy by `clones.soft_loss`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from disguide_jax.core import learn, streams
from disguide_jax.core.answers import to_labels
from disguide_jax.core.exchange import Exchange, Kit, Method, Round, Step
from disguide_jax.core.types import (
    Array,
    Learner,
    Metrics,
    Stage,
    TrainState,
    Variables,
)
from disguide_jax.methods.dfms import budget, choose, draw, gan, proxy, trees


class Extra(struct.PyTreeNode):
    """What DFMS keeps beside the state that all methods have."""

    start: Array  # [] int32, first round of the stage
    discriminator: Learner
    proxy: Array  # [P, H, W] uint8
    prior: Variables  # the generator whose images were labelled
    validation: Array  # [V, K] or [V], answers to the prior's images
    labelled: Array  # [L, 2, K] or [L, 2], answers to proxy images and the prior's
    fresh_clones: Variables  # untrained: stages 3 and 5 start from them
    fresh_discriminator: Variables  # likewise stage 4
    averages: Variables  # of the clones, leaves [A, C, ...]
    best: Variables  # the clones that agree most
    agreement: Array  # [] share of the validation images on which they do
    decay: Array  # [] of the average that they are


def init(kit: Kit, state: TrainState) -> Extra:
    """Fresh networks and proxy images, and room for answers."""
    batch, sizes = kit.config.batch_size, kit.config.dfms
    net, tx = gan.discriminator_of(kit)
    discriminator = net.init(streams.of_run(state, streams.DISCRIMINATOR))
    num_validation, num_labelled = (
        num // batch * batch for num in (sizes.validation_images, sizes.offline_images)
    )
    shape, dtype = kit.answers.shape(kit.task.num_classes), kit.answers.dtype
    clones = state.clones.variables
    proxy_key = streams.of_run(state, streams.PROXY)
    return Extra(
        start=jnp.zeros((), jnp.int32),
        discriminator=learn.start(discriminator, tx),
        proxy=proxy.make_proxy(proxy_key, sizes.proxy_images, kit.task.size),
        prior=state.generator.variables,
        validation=jnp.zeros((num_validation, *shape), dtype),
        labelled=jnp.zeros((num_labelled, 2, *shape), dtype),
        fresh_clones=clones,
        fresh_discriminator=discriminator,
        averages=trees.repeated(clones, len(choose.DECAYS)),
        best=clones,
        agreement=jnp.float32(-1),
        decay=jnp.zeros(()),
    )


def report(state: TrainState) -> dict[str, float]:
    """Which clones are the best so far, for the log; {} before the stage has compared any."""
    agreement, decay = jax.device_get((state.extra.agreement, state.extra.decay))
    if agreement < 0:
        return {}
    return {"choice/agreement": float(agreement), "choice/decay": float(decay)}


def make_round(kit: Kit, stage: Stage) -> Round:
    """One round of a stage; its last one says where the next stage begins."""
    part = STAGES[stage.name](kit, stage)

    def end(state: TrainState) -> tuple[TrainState, Metrics]:
        ended = draw.index_of(state) + 1 == stage.num_rounds
        start = jnp.where(ended, state.round + 1, state.extra.start)
        return state.replace(extra=state.extra.replace(start=start)), {}

    return part, end


# --- stages


def make_gan(kit: Kit, stage: Stage) -> Step:
    """Stage 1: the GAN learns to make what looks like the proxy images."""
    del stage

    def play(state: TrainState) -> tuple[TrainState, Metrics]:
        return update_gan(kit, state, judges=None, weight=0.0)

    return play


def make_diversity(kit: Kit, stage: Stage) -> Step:
    """Stage 4: the GAN goes on, rewarded for the classes that the best clones name."""
    del stage

    def play(state: TrainState) -> tuple[TrainState, Metrics]:
        extra: Extra = state.extra
        first = draw.index_of(state) == 0
        fresh = Learner(*extra.fresh_discriminator, extra.discriminator.opt_state)
        discriminator = trees.select(first, fresh, extra.discriminator)
        state = state.replace(extra=extra.replace(discriminator=discriminator))
        state = fresh_gan_optimizers(kit, state)
        weight = kit.config.dfms.diversity_weight
        return update_gan(kit, state, judges=extra.best if weight else None, weight=weight)

    return play


def make_validate(kit: Kit, stage: Stage) -> Exchange:
    """Stages 2, 6 and 8: generated images, labelled to choose by."""
    del stage
    batch = kit.config.batch_size

    def propose(state: TrainState, index: Array) -> tuple[Array, Variables]:
        del index
        first = draw.index_of(state) == 0
        prior = trees.select(first, state.generator.variables, state.extra.prior)
        return draw.prior_images(
            kit, state, prior, streams.VALIDATION, draw.batch_of(state, batch)
        ), prior

    def learn_from(
        state: TrainState, prior: Variables, images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        del images
        validation = trees.write(state.extra.validation, answers, draw.index_of(state) * batch)
        extra = state.extra.replace(prior=prior, validation=validation)
        return state.replace(extra=extra), variety(answers)

    return Exchange(batch, propose, learn_from)


def make_label(kit: Kit, stage: Stage) -> Exchange:
    """Stages 3 and 5, first part: proxy images and generated ones, labelled once."""
    del stage
    batch = kit.config.batch_size

    def propose(state: TrainState, index: Array) -> tuple[Array, tuple[()]]:
        del index
        indices = draw.batch_of(state, batch)
        of_prior = draw.prior_images(kit, state, state.extra.prior, streams.PRIOR, indices)
        return jnp.concatenate([draw.proxy_images(kit, state, indices), of_prior]), ()

    def learn_from(
        state: TrainState, carry: tuple[()], images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        del carry, images
        pairs = jnp.stack(jnp.split(answers, 2), axis=1)
        labelled = trees.write(state.extra.labelled, pairs, draw.index_of(state) * batch)
        return state.replace(extra=state.extra.replace(labelled=labelled)), variety(answers)

    return Exchange(2 * batch, propose, learn_from)


def make_offline(kit: Kit, stage: Stage) -> Step:
    """Stages 3 and 5, second part: new clones learn from what was labelled."""
    batch = kit.config.batch_size

    def play(state: TrainState) -> tuple[TrainState, Metrics]:
        extra = state.extra
        state = begin_clones(kit, state, extra.fresh_clones)
        num = len(extra.labelled)
        of_proxy, of_prior = (draw.shuffled(kit, state, num, stream) for stream in range(2))
        images = [
            draw.proxy_images(kit, state, of_proxy),
            draw.prior_images(kit, state, extra.prior, streams.PRIOR, of_prior),
        ]
        answers = [extra.labelled[of_proxy, 0], extra.labelled[of_prior, 1]]
        state, metrics = update_clones(kit, state, *map(jnp.concatenate, (images, answers)))
        candidates = jax.tree.map(lambda x: x[None], state.clones.variables)
        return choose_at(kit, stage, state, num // batch, candidates, jnp.zeros(1)), metrics

    return play


def make_alternate(kit: Kit, stage: Stage) -> Exchange:
    """Stage 7: clones, generator and discriminator learn in turns from fresh queries."""
    config = kit.config

    def propose(state: TrainState, index: Array) -> tuple[Array, tuple[Array, Array]]:
        del index
        z = draw.round_latent(kit, state)
        fake = gan.train_images(kit, state.generator, z)
        return draw.augment(kit, state, draw.AUGMENT, fake), (z, fake)

    def learn_from(
        state: TrainState, carry: tuple[Array, Array], images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        z, fake = carry
        state = begin_clones(kit, state, state.extra.best)
        state = fresh_gan_optimizers(kit, state)
        started = trees.repeated(state.clones.variables, len(choose.DECAYS))
        averages = trees.select(draw.index_of(state) == 0, started, state.extra.averages)
        state, metrics = update_clones(kit, state, images, answers)
        averages = jax.tree.map(choose.average, averages, state.clones.variables)
        weight = config.generator.diversity_weight
        judges = state.clones.variables if weight else None
        generator, more = gan.update_generator(
            kit, state.generator, state.extra.discriminator, z, judges=judges, weight=weight
        )
        discriminator, last = gan.update_discriminator(
            kit, state.extra.discriminator, draw.real_images(kit, state), fake
        )
        extra = state.extra.replace(averages=averages, discriminator=discriminator)
        state = state.replace(generator=generator, extra=extra)
        every = config.dfms.choose_every_rounds
        state = choose_at(kit, stage, state, every, averages, jnp.asarray(choose.DECAYS))
        return state, metrics | more | last

    return Exchange(config.batch_size, propose, learn_from)


def make_choose(kit: Kit, stage: Stage) -> Step:
    """Stage 8, second part: the last averages and the best clones so far, compared once more."""

    def play(state: TrainState) -> tuple[TrainState, Metrics]:
        extra: Extra = state.extra
        candidates = jax.tree.map(
            lambda averages, best: jnp.append(averages, best[None], axis=0),
            extra.averages,
            extra.best,
        )
        decays = jnp.append(jnp.asarray(choose.DECAYS), extra.decay)
        state = state.replace(extra=extra.replace(agreement=jnp.float32(-1)))
        return choose_at(kit, stage, state, 1, candidates, decays), {}

    return play


STAGES: dict[str, Callable[[Kit, Stage], Step | Exchange]] = {
    "gan": make_gan,
    "validate": make_validate,
    "label": make_label,
    "offline": make_offline,
    "diversity": make_diversity,
    "alternate": make_alternate,
    "choose": make_choose,
}


# --- what stages share


def update_gan(
    kit: Kit, state: TrainState, *, judges: Variables | None, weight: float
) -> tuple[TrainState, Metrics]:
    """One update of the discriminator, then one of the generator."""
    z = draw.round_latent(kit, state)
    fake = gan.train_images(kit, state.generator, z)
    discriminator, metrics = gan.update_discriminator(
        kit, state.extra.discriminator, draw.real_images(kit, state), fake
    )
    generator, more = gan.update_generator(
        kit, state.generator, discriminator, z, judges=judges, weight=weight
    )
    extra = state.extra.replace(discriminator=discriminator)
    return state.replace(generator=generator, extra=extra), metrics | more


def update_clones(
    kit: Kit, state: TrainState, images: Array, answers: Array
) -> tuple[TrainState, Metrics]:
    """One update of the clones in training."""
    clones, metrics = learn.teach(
        state.clones, kit.networks.clones, kit.tx.clones, kit.answers.loss, images, answers
    )
    return state.replace(clones=clones), metrics


def begin_clones(kit: Kit, state: TrainState, variables: Variables) -> TrainState:
    """At the first round of a stage: these clones, a fresh optimiser, and no choice yet."""
    first = draw.index_of(state) == 0
    clones = trees.select(first, learn.start(variables, kit.tx.clones), state.clones)
    agreement = jnp.where(first, -1, state.extra.agreement)
    return state.replace(clones=clones, extra=state.extra.replace(agreement=agreement))


def fresh_gan_optimizers(kit: Kit, state: TrainState) -> TrainState:
    """At the first round of a stage: optimisers of the GAN that have seen nothing yet."""
    first, discriminator = draw.index_of(state) == 0, state.extra.discriminator
    fresh = kit.tx.generator.init(state.generator.params)
    opt_state = trees.select(first, fresh, state.generator.opt_state)
    generator = state.generator._replace(opt_state=opt_state)
    _, tx = gan.discriminator_of(kit)
    fresh = tx.init(discriminator.params)
    discriminator = discriminator._replace(
        opt_state=trees.select(first, fresh, discriminator.opt_state)
    )
    extra = state.extra.replace(discriminator=discriminator)
    return state.replace(generator=generator, extra=extra)


def choose_at(
    kit: Kit,
    stage: Stage,
    state: TrainState,
    every: int,
    candidates: Variables,
    decays: Array,
) -> TrainState:
    """After `every` rounds and at the end: the best of the candidates, if they are better.

    Candidates have leaves [A, C, ...] and are averages with these decays [A].
    """
    extra, index = state.extra, draw.index_of(state)
    due = ((index + 1) % every == 0) | (index + 1 == stage.num_rounds)

    def chosen() -> tuple[Variables, Array, Array]:
        agreements = choose.measure(
            kit.networks.clones,
            candidates,
            lambda indices: draw.prior_images(kit, state, extra.prior, streams.VALIDATION, indices),
            extra.validation,
            batch_size=kit.config.batch_size,
        )
        best = jnp.argmax(agreements)
        found = jax.tree.map(lambda x: x[best], candidates)
        found = found, agreements[best], decays[best]
        return trees.select(agreements[best] > extra.agreement, found, as_before())

    def as_before() -> tuple[Variables, Array, Array]:
        return extra.best, extra.agreement, extra.decay

    best, agreement, decay = jax.lax.cond(due, chosen, as_before)
    return state.replace(extra=extra.replace(best=best, agreement=agreement, decay=decay))


def variety(answers: Array) -> Metrics:
    """In how many classes a batch of answers falls."""
    labels = to_labels(answers)
    first = jnp.triu(labels[:, None] == labels[None, :], k=1).any(axis=0)
    return {"gen/num_classes": (~first).sum().astype(jnp.float32)}


METHOD = Method(
    "dfms",
    budget.check,
    budget.stages,
    make_round,
    ignores=(
        "clones.steps",
        "generator.optimizer",
        "generator.momentum",
        "replay.",
        "schedule.",
        "zeroth_order.",
        "disguide.",
        "as_in_text",
    ),
    has_discriminator=True,
    can_restart=False,
    optimizers=budget.make_optimizers,
    init=init,
    result=lambda state: state.extra.best,
    report=report,
    devices_meet_in_loops=True,
)
