"""A whole extraction on networks of one layer each, which compile in a second."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from disguide_jax import models, steps
from disguide_jax.config import Config, GeneratorConfig, ReplayConfig
from disguide_jax.models.layers import BatchNorm
from disguide_jax.state import Array, Networks, Optimizers, TrainState

NUM_CLASSES = 5


class TinyGenerator(nn.Module):
    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        x = nn.Dense(8 * 8 * 3, name="l1")(z).reshape(-1, 8, 8, 3)
        x = BatchNorm(name="norm")(x, train=train)
        return jnp.tile(x, (1, 4, 4, 1))


class TinyClassifier(nn.Module):
    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = x.reshape(-1, 8, 4, 8, 4, 3).mean(axis=(2, 4))
        x = BatchNorm(name="norm")(x, train=train)
        return nn.Dense(NUM_CLASSES, name="fc")(x.reshape(-1, 8 * 8 * 3))


class TinyDiscriminator(nn.Module):
    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = x.reshape(-1, 8, 4, 8, 4, 3).mean(axis=(2, 4))
        x = BatchNorm(name="norm")(x, train=train)
        return nn.Dense(1, name="fc")(x.reshape(-1, 8 * 8 * 3)).reshape(-1)


def config(**changes: Any) -> Config:
    """6 images a round, 10 rounds, b = 2, a replay of 16."""
    base = Config(
        name="tiny",
        dataset="digits",
        labels="hard",
        query_budget=60,
        batch_size=6,
        generator=GeneratorConfig(width=2, latent_dim=4),
        replay=ReplayConfig(size=16, batches=2),
    )
    return dataclasses.replace(base, **changes)


def classifier():
    return models.as_net(TinyClassifier(), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))


def build(config: Config) -> tuple[Networks, Optimizers, TrainState]:
    latent = jax.ShapeDtypeStruct((1, config.generator.latent_dim), jnp.float32)
    clones = models.stack(classifier(), config.num_clones)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    discriminator = models.as_net(TinyDiscriminator(), image)
    networks = Networks(models.as_net(TinyGenerator(), latent), clones, clones, discriminator)
    tx = steps.make_optimizers(config)
    init = functools.partial(steps.init_state, config, networks, tx)
    return networks, tx, jax.jit(lambda: init(num_classes=NUM_CLASSES, channels=3))()


def brightness(images: Array) -> Array:
    """A victim that needs no network: the class is the brightness."""
    level = (images.mean(axis=(1, 2, 3)) + 1) / 2
    return jnp.clip(level * NUM_CLASSES, 0, NUM_CLASSES - 1).astype(jnp.int32)


def soft_brightness(images: Array) -> Array:
    """The same with probabilities."""
    return jax.nn.one_hot(brightness(images), NUM_CLASSES) * 0.9 + 0.02


def smooth_brightness(images: Array) -> Array:
    """A victim whose probabilities follow every pixel, as forward differences need."""
    level = images.mean(axis=(1, 2, 3))[:, None]
    return jax.nn.softmax(-jnp.square(3 * level - jnp.arange(NUM_CLASSES)[None] / 2))
