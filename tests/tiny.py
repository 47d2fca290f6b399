"""A whole extraction on networks of one layer each, which compile in a second."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from disguide_jax import models
from disguide_jax.config import Config, ReplayConfig
from disguide_jax.core.exchange import Kit, Play
from disguide_jax.core.types import Array, Networks, Task, TrainState
from disguide_jax.models.layers import BatchNorm
from disguide_jax.options import GeneratorConfig
from disguide_jax.run import program as parts

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
        x = nn.Dense(8, name="hidden")(x.reshape(-1, 8 * 8 * 3))  # in the dtype of the weights
        x = BatchNorm(name="norm")(x, train=train)
        return nn.Dense(1, name="fc")(x).reshape(-1)


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


TASK = Task(32, 3, NUM_CLASSES, (0.5,) * 3, (0.5,) * 3)


def make_kits(config: Config) -> dict[str, Kit]:
    """What rounds are built from, by the name of their stage."""
    latent = jax.ShapeDtypeStruct((1, config.generator.latent_dim), jnp.float32)
    clones = models.stack(classifier(), config.num_clones)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    discriminator = models.as_net(TinyDiscriminator(), image)
    generators = models.share(models.as_net(TinyGenerator(), latent), config.generator.count)
    networks = Networks(generators, clones, clones, discriminator)
    stages = parts.stages_of(config)
    return {stage.name: parts.make_kit(config, TASK, networks, stage) for stage in stages}


def build(config: Config) -> tuple[Kit, TrainState]:
    """The kit of the last stage, and a fresh state."""
    kit = list(make_kits(config).values())[-1]
    return kit, jax.jit(functools.partial(parts.init_state, kit))(jax.random.key(config.seed))


def make_step(kit: Kit) -> Play:
    """One round of the last stage."""
    return parts.make_play(kit, parts.stages_of(kit.config)[-1])


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
