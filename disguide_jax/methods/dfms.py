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

`state.clones` are the best clones so far: those that agree most often with the victim on the
validation images, which are paid for. Those in training are in `state.extra`, with exponential
averages of them in stage 7, which are candidates, too. Generated images that were labelled are
not stored: they are made again from their number by the generator of that time.

The authors published hard labels only. With soft labels this is a variant of this project's
own, which replaces the clones' cross-entropy by `clones.soft_loss`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from disguide_jax import losses, optim, proxy, updates
from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.evaluate import soft_vote, to_float
from disguide_jax.state import (
    Array,
    Metrics,
    Networks,
    Optimizers,
    Stage,
    TrainState,
    Variables,
)
from disguide_jax.victim import to_labels

# Streams of randomness: those of a round, and those of a stage or of the run.
LATENT, AUGMENT, REAL = range(3)
SHUFFLE, PROXY, PRIOR, VALIDATION, DISCRIMINATOR = range(2**31 - 10, 2**31 - 5)

DECAYS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9995, 0.9998)  # of the averages; A of them
KEEPS_REPLAY = False
NEEDS_FLOAT32 = False

Play = Callable[[TrainState, Any, Array], tuple[TrainState, Metrics]]


@struct.dataclass
class Extra:
    """What DFMS keeps beside the state that all methods have."""

    start: Array  # [] int32, first round of the stage
    discriminator: Variables
    discriminator_opt: optax.OptState
    proxy: Array  # [P, 32, 32] uint8
    prior: Variables  # the generator whose images were labelled
    validation: Array  # [V, K] or [V], answers to the prior's images
    labelled: Array  # [L, 2, K] or [L, 2], answers to proxy images and the prior's
    fresh_clones: Variables  # untrained: stages 3 and 5 start from them
    fresh_discriminator: Variables  # likewise stage 4
    student: Variables  # clones in training
    averages: Variables  # of the student, leaves [A, C, ...]
    agreement: Array  # [] share of the validation images on which state.clones agree
    decay: Array  # [] of the average that state.clones are


def check(config: Config) -> None:
    """Raises UserError for what this method cannot do."""
    batch, sizes = config.batch_size, config.dfms
    for key in ("proxy_images", "validation_images", "offline_images"):
        if getattr(sizes, key) < batch:
            raise UserError(
                f"config.dfms.{key} is {getattr(sizes, key)}; it must be at least a batch "
                f"(config.batch_size is {batch})"
            )
    if sizes.offline_images > sizes.proxy_images:
        raise UserError(
            f"config.dfms.offline_images is {sizes.offline_images}; there are only "
            f"{sizes.proxy_images} proxy images (config.dfms.proxy_images)"
        )
    if config.guard == "restart":
        raise UserError(
            "config.guard is 'restart'; dfms, which builds on its earlier stages, can only warn "
            "or stop"
        )
    if config.clones.average_decay:
        raise UserError(
            f"config.clones.average_decay is {config.clones.average_decay}; dfms chooses among "
            "averages of its own: set it to 0"
        )
    if config.generator.gray_every:
        raise UserError(
            f"config.generator.gray_every is {config.generator.gray_every}; dfms turns no "
            "images gray: set it to 0"
        )


def stages(config: Config) -> tuple[Stage, ...]:
    """All stages; the last gets what the others leave of the budget.

    Raises:
      UserError: they leave less than a batch.
    """
    batch, sizes = config.batch_size, config.dfms
    gan_batches, offline_batches = sizes.proxy_images // batch, sizes.offline_images // batch
    gan = Stage("gan", sizes.gan_epochs * gan_batches, 0)
    diversity = Stage("diversity", sizes.diversity_epochs * gan_batches, 0)
    clones = (
        Stage("validate", sizes.validation_images // batch, batch),
        Stage("label", offline_batches, 2 * batch),
        Stage("offline", sizes.offline_epochs * offline_batches, 0),
    )
    before = (gan, *clones, diversity, *clones)
    paid = sum(stage.num_rounds * stage.queries_per_round for stage in before)
    if config.query_budget < paid + batch:
        raise UserError(
            f"config.query_budget is {config.query_budget:,}; dfms pays {paid:,} for validation "
            f"and offline images before it goes on with batches of {batch:,}, so it must be at "
            f"least {paid + batch:,}. Or choose smaller config.dfms.validation_images and "
            "config.dfms.offline_images."
        )
    played = (stage for stage in before if stage.num_rounds)
    return (*played, Stage("alternate", (config.query_budget - paid) // batch, batch))


def make_optimizers(config: Config, stage: Stage) -> Optimizers:
    """Those of one stage; their states look alike in all stages."""
    offline = stage.name == "offline"
    rate = config.dfms.offline_learning_rate if offline else config.clones.learning_rate
    clones_rate = optax.cosine_decay_schedule(rate, stage.num_rounds)
    gan = optim.adam(
        config.generator.learning_rate, config.generator.weight_decay, b1=config.dfms.adam_b1
    )
    clones = optim.sgd(
        clones_rate, momentum=config.clones.momentum, weight_decay=config.clones.weight_decay
    )
    return Optimizers(
        generator=gan,
        clones=clones,
        generator_rate=optax.constant_schedule(config.generator.learning_rate),
        clones_rate=clones_rate,
        discriminator=gan,
    )


def init_extra(
    config: Config, networks: Networks, tx: Optimizers, state: TrainState, answers: Any
) -> Extra:
    """Fresh networks and proxy images, and room for answers shaped [N, ...] like `answers`."""
    key, batch = state.key, config.batch_size
    discriminator = networks.discriminator.init(jax.random.fold_in(key, DISCRIMINATOR))
    num_validation, num_labelled = (
        num // batch * batch for num in (config.dfms.validation_images, config.dfms.offline_images)
    )
    one = answers.shape[1:]
    return Extra(
        start=jnp.zeros((), jnp.int32),
        discriminator=discriminator,
        discriminator_opt=tx.discriminator.init(discriminator.params),
        proxy=proxy.make_proxy(jax.random.fold_in(key, PROXY), config.dfms.proxy_images),
        prior=state.generator,
        validation=jnp.zeros((num_validation, *one), answers.dtype),
        labelled=jnp.zeros((num_labelled, 2, *one), answers.dtype),
        fresh_clones=state.clones,
        fresh_discriminator=discriminator,
        student=state.clones,
        averages=repeated(state.clones, len(DECAYS)),
        agreement=jnp.float32(-1),
        decay=jnp.zeros(()),
    )


def report(extra: Extra) -> dict[str, float]:
    """Which clones are the best so far, for the log; {} before the stage has compared any."""
    agreement, decay = jax.device_get((extra.agreement, extra.decay))
    if agreement < 0:
        return {}
    return {"choice/agreement": float(agreement), "choice/decay": float(decay)}


def make_round(
    config: Config, networks: Networks, *, channels: int, stage: Stage
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The pure function (state, victim) -> (state, metrics) of one round of a stage."""
    tx = make_optimizers(config, stage)
    batch, sizes = config.batch_size, config.dfms
    latent_dim = config.generator.latent_dim
    clone_loss = updates.make_clone_loss(config.clones, labels=config.labels)

    # --- images

    def round_latent(state: TrainState) -> Array:
        return jax.random.normal(updates.round_key(state, LATENT), (batch, latent_dim))

    def prior_images(state: TrainState, stream: int, indices: Array) -> Array:
        """The prior's images of these numbers, always the same."""
        key = jax.random.fold_in(state.key, stream)
        z = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (latent_dim,)))
        pre_tanh, _ = networks.generator.apply(state.extra.prior, z(indices), train=False)
        return updates.as_sent(state, jnp.tanh(pre_tanh))

    def proxy_images(state: TrainState, indices: Array) -> Array:
        gray = state.extra.proxy[indices][..., None]
        return to_float(jnp.broadcast_to(gray, (*gray.shape[:-1], channels)))

    def shuffled(state: TrainState, index: Array, num: int, stream: int) -> Array:
        """The numbers [N] of a batch, below `num`: every one comes once in an epoch."""
        batches = num // batch
        key = jax.random.fold_in(jax.random.fold_in(state.key, SHUFFLE), stream)
        key = jax.random.fold_in(key, state.extra.start + index // batches)
        order = jax.random.permutation(key, num)
        return jax.lax.dynamic_slice(order, (index % batches * batch,), (batch,))

    def augment(state: TrainState, stream: int, images: Array) -> Array:
        key = updates.round_key(state, stream)
        return updates.augment(key, images, padding=4, flip=sizes.flip, black=-1)

    def real_images(state: TrainState, index: Array) -> Array:
        indices = shuffled(state, index, sizes.proxy_images, 0)
        return augment(state, REAL, proxy_images(state, indices))

    # --- the GAN

    def fake_logits(state: TrainState, discriminator: Variables, images: Array) -> Any:
        return networks.discriminator.apply(discriminator, images, train=True)

    def update_discriminator(
        state: TrainState, real: Array, fake: Array
    ) -> tuple[TrainState, Metrics]:
        extra = state.extra

        def loss_fn(params: Any) -> tuple[Array, Any]:
            variables = extra.discriminator._replace(params=params)
            real_logits, batch_stats = fake_logits(state, variables, real)
            variables = variables._replace(batch_stats=batch_stats)
            logits, batch_stats = fake_logits(state, variables, fake)
            return (jax.nn.softplus(-real_logits) + jax.nn.softplus(logits)).mean(), batch_stats

        params = extra.discriminator.params
        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        change, opt = tx.discriminator.update(grads, extra.discriminator_opt, params)
        discriminator = Variables(optax.apply_updates(params, change), batch_stats)
        extra = extra.replace(discriminator=discriminator, discriminator_opt=opt)
        return state.replace(extra=extra), {"disc/loss": loss}

    def update_generator(
        state: TrainState, z: Array, judges: Variables, weight: float
    ) -> tuple[TrainState, Metrics]:
        """On the discriminator, and on the classes that the `judges` see in the batch."""

        def loss_fn(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
            variables = state.generator._replace(params=params)
            pre_tanh, batch_stats = networks.generator.apply(variables, z, train=True)
            images = jnp.tanh(pre_tanh)
            logits, _ = fake_logits(state, state.extra.discriminator, images)
            loss, metrics = jax.nn.softplus(-logits).mean(), {}
            if weight:
                answers, _ = networks.clones.apply(judges, images, train=False)
                diversity = losses.class_balance(jax.nn.softmax(answers))
                loss, metrics = loss + weight * diversity, {"gen/diversity_loss": diversity}
            return loss, (batch_stats, metrics)

        return updates.update_generator(state, tx.generator, loss_fn)

    def train_images(state: TrainState, z: Array) -> Array:
        """As the generator makes them in train mode; its statistics follow in its update."""
        pre_tanh, _ = networks.generator.apply(state.generator, z, train=True)
        return jnp.tanh(pre_tanh)

    def fresh_gan_optimizers(state: TrainState, index: Array) -> TrainState:
        extra = state.extra
        fresh = tx.generator.init(state.generator.params)
        state = state.replace(generator_opt=select(index == 0, fresh, state.generator_opt))
        fresh = tx.discriminator.init(extra.discriminator.params)
        opt = select(index == 0, fresh, extra.discriminator_opt)
        return state.replace(extra=extra.replace(discriminator_opt=opt))

    # --- clones

    def update_student(
        state: TrainState, images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        after, metrics = updates.update_clones(
            state.replace(clones=state.extra.student),
            networks.clones,
            tx.clones,
            clone_loss,
            images,
            answers,
        )
        extra = state.extra.replace(student=after.clones)
        return after.replace(clones=state.clones, extra=extra), metrics

    def measure(state: TrainState, clones: Variables) -> Array:
        """How often the soft vote says what the victim said of the validation images, []."""
        truth = to_labels(state.extra.validation).reshape(-1, batch)

        def agreeing(i: Array) -> Array:
            images = prior_images(state, VALIDATION, i * batch + jnp.arange(batch))
            logits, _ = networks.clones.apply(clones, images, train=False)
            return (soft_vote(logits) == truth[i]).mean()

        return jax.lax.map(agreeing, jnp.arange(len(truth))).mean()

    def choose(state: TrainState, candidates: Variables, decays: Array) -> TrainState:
        """Makes the best of the candidates, leaves [A, ...], the clones, if they are better."""
        agreements = jax.lax.map(lambda clones: measure(state, clones), candidates)
        best = jnp.argmax(agreements)
        better = agreements[best] > state.extra.agreement

        def pick(candidates: Array, clones: Array) -> Array:
            return jnp.where(better, candidates[best], clones)

        return state.replace(
            clones=jax.tree.map(pick, candidates, state.clones),
            extra=state.extra.replace(
                agreement=pick(agreements, state.extra.agreement),
                decay=pick(decays, state.extra.decay),
            ),
        )

    def choose_at(
        state: TrainState, index: Array, every: int, candidates: Variables, decays: tuple
    ) -> TrainState:
        due = ((index + 1) % every == 0) | (index + 1 == stage.num_rounds)

        def chosen() -> tuple:
            after = choose(state, candidates, jnp.asarray(decays))
            return after.clones, after.extra.agreement, after.extra.decay

        def as_before() -> tuple:
            return state.clones, state.extra.agreement, state.extra.decay

        clones, agreement, decay = jax.lax.cond(due, chosen, as_before)
        extra = state.extra.replace(agreement=agreement, decay=decay)
        return state.replace(clones=clones, extra=extra)

    def begin_student(state: TrainState, index: Array, student: Variables) -> TrainState:
        """At the first round of a stage: a student, its optimiser, and no choice yet."""
        return state.replace(
            clones_opt=select(index == 0, tx.clones.init(student.params), state.clones_opt),
            extra=state.extra.replace(
                student=select(index == 0, student, state.extra.student),
                agreement=jnp.where(index == 0, -1, state.extra.agreement),
            ),
        )

    # --- stages

    def gan(state: TrainState, victim: Any, index: Array) -> tuple[TrainState, Metrics]:
        del victim
        z = round_latent(state)
        fake = train_images(state, z)
        state, metrics = update_discriminator(state, real_images(state, index), fake)
        state, more = update_generator(state, z, state.clones, 0)
        return state, metrics | more

    def diversity(state: TrainState, victim: Any, index: Array) -> tuple[TrainState, Metrics]:
        del victim
        extra = state.extra
        discriminator = select(index == 0, extra.fresh_discriminator, extra.discriminator)
        state = state.replace(extra=extra.replace(discriminator=discriminator))
        state = fresh_gan_optimizers(state, index)
        z = round_latent(state)
        fake = train_images(state, z)
        state, metrics = update_discriminator(state, real_images(state, index), fake)
        state, more = update_generator(state, z, state.clones, sizes.diversity_weight)
        return state, metrics | more

    def validate(state: TrainState, victim: Any, index: Array) -> tuple[TrainState, Metrics]:
        prior = select(index == 0, state.generator, state.extra.prior)
        state = state.replace(extra=state.extra.replace(prior=prior))
        images = prior_images(state, VALIDATION, index * batch + jnp.arange(batch))
        state, _, answers = updates.query(state, victim, images, keep=False)
        validation = write(state.extra.validation, answers, index * batch)
        return state.replace(extra=state.extra.replace(validation=validation)), variety(answers)

    def label(state: TrainState, victim: Any, index: Array) -> tuple[TrainState, Metrics]:
        indices = index * batch + jnp.arange(batch)
        images = [proxy_images(state, indices), prior_images(state, PRIOR, indices)]
        state, _, answers = updates.query(state, victim, jnp.concatenate(images), keep=False)
        pairs = jnp.stack(jnp.split(answers, 2), axis=1)
        labelled = write(state.extra.labelled, pairs, index * batch)
        return state.replace(extra=state.extra.replace(labelled=labelled)), variety(answers)

    def offline(state: TrainState, victim: Any, index: Array) -> tuple[TrainState, Metrics]:
        del victim
        state = begin_student(state, index, state.extra.fresh_clones)
        num = len(state.extra.labelled)
        of_proxy, of_prior = (shuffled(state, index, num, stream) for stream in range(2))
        images = [proxy_images(state, of_proxy), prior_images(state, PRIOR, of_prior)]
        answers = [state.extra.labelled[of_proxy, 0], state.extra.labelled[of_prior, 1]]
        state, metrics = update_student(state, *map(jnp.concatenate, (images, answers)))
        candidates = jax.tree.map(lambda x: x[None], state.extra.student)
        return choose_at(state, index, num // batch, candidates, (0.0,)), metrics

    def alternate(state: TrainState, victim: Any, index: Array) -> tuple[TrainState, Metrics]:
        state = begin_student(state, index, state.clones)
        state = fresh_gan_optimizers(state, index)
        started = repeated(state.extra.student, len(DECAYS))
        averages = select(index == 0, started, state.extra.averages)

        z = round_latent(state)
        fake = train_images(state, z)
        state, images, answers = updates.query(
            state, victim, augment(state, AUGMENT, fake), keep=False
        )
        state, metrics = update_student(state, images, answers)
        averages = jax.tree.map(average, averages, state.extra.student)
        state = state.replace(extra=state.extra.replace(averages=averages))
        weight = config.generator.diversity_weight
        state, more = update_generator(state, z, state.extra.student, weight)
        state, last = update_discriminator(state, real_images(state, index), fake)
        state = choose_at(state, index, sizes.choose_every_rounds, averages, DECAYS)
        return state, metrics | more | last

    play: Play = {
        "gan": gan,
        "validate": validate,
        "label": label,
        "offline": offline,
        "diversity": diversity,
        "alternate": alternate,
    }[stage.name]

    def play_round(state: TrainState, victim: Any) -> tuple[TrainState, Metrics]:
        index = state.round - state.extra.start
        state, metrics = play(state, victim, index)
        ended = index + 1 == stage.num_rounds
        start = jnp.where(ended, state.round + 1, state.extra.start)
        extra = state.extra.replace(start=start)
        return state.replace(round=state.round + 1, extra=extra), metrics

    return play_round


def average(averages: Array, new: Array) -> Array:
    """One step of every exponential average, [A, ...] and [...] -> [A, ...]."""
    decays = jnp.asarray(DECAYS, new.dtype).reshape(-1, *[1] * new.ndim)
    return decays * averages + (1 - decays) * new[None]


def repeated(tree: Any, num: int) -> Any:
    """Every leaf `num` times, on a new axis 0."""
    return jax.tree.map(lambda x: jnp.repeat(x[None], num, axis=0), tree)


def select(condition: Array, tree: Any, other: Any) -> Any:
    """One of two trees of the same shapes."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree, other)


def write(buffer: Array, rows: Array, at: Array) -> Array:
    """Rows written from index `at` on; they fit."""
    return jax.lax.dynamic_update_slice(buffer, rows, (at, *[0] * (rows.ndim - 1)))


def variety(answers: Array) -> Metrics:
    """In how many classes a batch of answers falls."""
    labels = to_labels(answers)
    first = jnp.triu(labels[:, None] == labels[None, :], k=1).any(axis=0)
    return {"gen/num_classes": (~first).sum().astype(jnp.float32)}
