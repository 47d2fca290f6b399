"""What a victim may say, how clones learn from it, and how they vote."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from disguide_jax.core import losses
from disguide_jax.core.types import Array

CloneLoss = Callable[[Array, Array], Array]  # logits [C, N, K], answers -> [C, N]
LEFT = 2.0**-24  # of probabilities whose sum float32 rounds to 1


class Answers(NamedTuple):
    """One kind of answer: its shape for one image, its type, and the clones' loss on it."""

    shape: Callable[[int], tuple[int, ...]]  # number of classes K -> shape of one answer
    dtype: jnp.dtype
    loss: CloneLoss


def hard(*, smoothing: float = 0.0, boundary_weight: float = 0.0) -> Answers:
    """Labels [N], which clones learn by cross-entropy (Section 3.2).

    Args:
      smoothing: of the labels, see `losses.hard_cross_entropy`.
      boundary_weight: of what the clones are unsure of, see `losses.boundary_weights`.
    """

    def loss(logits: Array, answers: Array) -> Array:
        found = losses.hard_cross_entropy(logits, labels=answers, smoothing=smoothing)
        if boundary_weight == 0:
            return found
        return found * losses.boundary_weights(logits, weight=boundary_weight)[None]

    return Answers(lambda num_classes: (), jnp.dtype(jnp.int32), loss)


def soft(loss: CloneLoss) -> Answers:
    """Probabilities [N, K], which clones learn by one of `SOFT_LOSSES`."""
    return Answers(lambda num_classes: (num_classes,), jnp.dtype(jnp.float32), loss)


def l1(floor: float) -> CloneLoss:
    """The absolute error to centred log-probabilities, as in the authors' code."""
    return lambda logits, answers: losses.l1(
        logits, targets=losses.centred_log_probs(answers, floor=floor)[None]
    )


def top_l1(floor: float, num: int) -> CloneLoss:
    """The absolute error on the victim's `num` top classes, see `losses.top_l1`."""
    return lambda logits, answers: losses.top_l1(
        logits, targets=losses.centred_log_probs(answers, floor=floor)[None], num=num
    )


def cross_entropy(floor: float) -> CloneLoss:
    """The cross-entropy of the paper's text (Section 3.2), which needs no floor."""
    del floor
    return lambda logits, answers: losses.soft_cross_entropy(logits, probs=answers[None])


def kl(floor: float) -> CloneLoss:
    """KL(victim || clone), as MAZE has it; it needs no floor."""
    del floor
    return lambda logits, answers: losses.kl_divergence(logits, probs=answers[None])


SOFT_LOSSES: dict[str, Callable[[float], CloneLoss]] = {
    "l1": l1,
    "cross_entropy": cross_entropy,
    "kl": kl,
}


def at_temperature(loss: CloneLoss, temperature: float) -> CloneLoss:
    """A loss on softmaxes of logits / T, the victim's and the clones', times T^2.

    The factor keeps the gradient's size (Hinton et al., 2015).
    """
    if temperature == 1:
        return loss
    return lambda logits, answers: (
        temperature**2 * loss(logits / temperature, losses.at_temperature(answers, temperature))
    )


def to_labels(answers: Array) -> Array:
    """The classes [N] that answers name, probabilities [N, K] or labels [N].

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank(answers, {1, 2})
    return answers if answers.ndim == 1 else jnp.argmax(answers, axis=-1).astype(jnp.int32)


def whole(probs: Array, *, spread: bool = False, decimals: int = 0) -> Array:
    """All of K probabilities, which sum to 1, from what an API tells of them.

    Args:
      probs: [N, K], of which some are 0.
      spread: classes that are 0 were not named: what is left of 1 goes evenly to them. Of a sum
        that float32 rounds to 1 at least half a unit of its last digit is left.
      decimals: to which the others are rounded, so that 0 means half a unit; 0: they are not.

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank(probs, 2)
    if spread:
        unnamed = probs == 0
        left = jnp.maximum(1 - probs.sum(axis=1, keepdims=True), LEFT)
        num = jnp.maximum(unnamed.sum(axis=1, keepdims=True), 1)
        probs = jnp.where(unnamed, left / num, probs)
    if decimals:
        probs = jnp.maximum(probs, 0.5 * 10.0**-decimals)
    return probs / probs.sum(axis=1, keepdims=True)


def soft_vote(logits: Array) -> Array:
    """The class with the largest sum of softmaxes, [C, N, K] -> [N] (Section 3).

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank(logits, 3)
    return jnp.argmax(jax.nn.softmax(logits).sum(axis=0), axis=-1)


def hard_vote(logits: Array) -> Array:
    """The class that most clones name, [C, N, K] -> [N]; ties go to the soft vote.

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank(logits, 3)
    probs = jax.nn.softmax(logits)
    votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1]).sum(axis=0)
    return jnp.argmax(votes + probs.mean(axis=0) / 2, axis=-1)
