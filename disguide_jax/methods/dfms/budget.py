"""What DFMS refuses, what its stages cost, and how long each learns at what rate."""

import optax

from disguide_jax.config import Config
from disguide_jax.core import learn
from disguide_jax.core.types import Optimizers, Stage
from disguide_jax.errors import UserError


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
    """All stages; the alternation gets what the others leave of the budget.

    Raises:
      UserError: they leave less than a batch.
    """
    batch, sizes = config.batch_size, config.dfms
    gan_batches, offline_batches = sizes.proxy_images // batch, sizes.offline_images // batch
    gan = Stage("gan", sizes.gan_epochs * gan_batches, 0, generator_updates=1)
    diversity = Stage("diversity", sizes.diversity_epochs * gan_batches, 0, generator_updates=1)
    validate = Stage("validate", sizes.validation_images // batch, batch)
    clones = (
        validate,
        Stage("label", offline_batches, 2 * batch),
        Stage("offline", sizes.offline_epochs * offline_batches, 0, clone_updates=1),
    )
    before = (gan, *clones, diversity, *clones)
    after = (validate, Stage("choose", 1, 0)) if sizes.validate_last else ()
    paid = sum(stage.num_rounds * stage.queries for stage in (*before, *after))
    if config.query_budget < paid + batch:
        raise UserError(
            f"config.query_budget is {config.query_budget:,}; dfms pays {paid:,} for validation "
            f"and offline images beside batches of {batch:,}, so it must be at "
            f"least {paid + batch:,}. Or choose smaller config.dfms.validation_images and "
            "config.dfms.offline_images."
        )
    played = (stage for stage in before if stage.num_rounds)
    rounds = (config.query_budget - paid) // batch
    alternate = Stage("alternate", rounds, batch, generator_updates=1, clone_updates=1)
    return (*played, alternate, *after)


def make_optimizers(config: Config, stage: Stage) -> Optimizers:
    """Those of one stage; their states look alike in all stages."""
    offline = stage.name == "offline"
    rate = config.dfms.offline_learning_rate if offline else config.clones.learning_rate
    clones_rate = optax.cosine_decay_schedule(rate, stage.num_rounds)
    gan_tx = learn.adam(
        config.generator.learning_rate,
        weight_decay=config.generator.weight_decay,
        b1=config.dfms.adam_b1,
    )
    clones = learn.sgd(
        clones_rate, momentum=config.clones.momentum, weight_decay=config.clones.weight_decay
    )
    return Optimizers(
        generator=gan_tx,
        clones=clones,
        discriminator=gan_tx,
        generator_rate=optax.constant_schedule(config.generator.learning_rate),
        clones_rate=clones_rate,
    )
