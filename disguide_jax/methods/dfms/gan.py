"""DFMS's generator and discriminator, trained against each other."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from disguide_jax.core import learn, losses
from disguide_jax.core.exchange import Kit
from disguide_jax.core.types import Array, Learner, Metrics, Net, Variables


def discriminator_of(kit: Kit) -> tuple[Net, optax.GradientTransformation]:
    """The network that judges, which `METHOD.has_discriminator` asks for, and its optimiser."""
    net, tx = kit.networks.discriminator, kit.tx.discriminator
    if net is None or tx is None:
        raise AssertionError("the kit has no discriminator")
    return net, tx


def train_images(kit: Kit, generator: Learner, z: Array) -> Array:
    """Images as the generator makes them in train mode; its statistics follow in its update."""
    pre_tanh, _ = kit.networks.generator.apply(generator.variables, z, train=True)
    return jnp.tanh(pre_tanh)


def update_discriminator(
    kit: Kit, discriminator: Learner, real: Array, fake: Array
) -> tuple[Learner, Metrics]:
    """One update on telling real images [N, H, W, channels] from as many generated ones."""
    net, tx = discriminator_of(kit)

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        variables = Variables(params, discriminator.batch_stats)
        real_logits, batch_stats = net.apply(variables, real, train=True)
        variables = Variables(params, batch_stats)
        fake_logits, batch_stats = net.apply(variables, fake, train=True)
        loss = (jax.nn.softplus(-real_logits) + jax.nn.softplus(fake_logits)).mean()
        return loss, (batch_stats, {})

    learner, loss, _ = learn.learn(discriminator, tx, loss_fn)
    return learner, {"disc/loss": loss}


def update_generator(
    kit: Kit,
    generator: Learner,
    discriminator: Learner,
    z: Array,
    *,
    judges: Variables | None = None,
    weight: float = 0.0,
) -> tuple[Learner, Metrics]:
    """One update on passing for real, and on the classes that judges see in the batch.

    Args:
      kit: of the run.
      generator: that learns.
      discriminator: that it must deceive.
      z: latent batch [N, Z].
      judges: clones, in eval mode; None does without.
      weight: of the diversity of their answers.
    """
    net, _ = discriminator_of(kit)

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        variables = Variables(params, generator.batch_stats)
        pre_tanh, batch_stats = kit.networks.generator.apply(variables, z, train=True)
        images = jnp.tanh(pre_tanh)
        logits, _ = net.apply(discriminator.variables, images, train=True)
        loss, metrics = jax.nn.softplus(-logits).mean(), {}
        if judges is not None:
            answers, _ = kit.networks.clones.apply(judges, images, train=False)
            diversity = losses.class_balance(jax.nn.softmax(answers))
            loss, metrics = loss + weight * diversity, {"gen/diversity_loss": diversity}
        return loss, (batch_stats, metrics)

    learner, loss, metrics = learn.learn(generator, kit.tx.generator, loss_fn)
    return learner, metrics | {"gen/loss": loss}
