"""How DFMS chooses among candidates: by their agreement with answers that were paid for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from disguide_jax.core.answers import soft_vote, to_labels
from disguide_jax.core.types import Array, Net, Variables

DECAYS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9995, 0.9998)  # of the averages; A of them


def measure(
    net: Net,
    candidates: Variables,
    make_images: Callable[[Array], Array],
    answers: Array,
    *,
    batch_size: int,
) -> Array:
    """How often the soft vote of each candidate says what the victim said, [A].

    Args:
      net: of stacked clones.
      candidates: leaves [A, C, ...].
      make_images: numbers [N] -> validation images, made once for all candidates.
      answers: the victim's, to images 0, 1, ..., [V, K] or [V].
      batch_size: N, which divides V.
    """
    truth = to_labels(answers).reshape(-1, batch_size)

    def of_batch(i: Array) -> Array:
        images = make_images(i * batch_size + jnp.arange(batch_size))

        def agreeing(clones: Variables) -> Array:
            logits, _ = net.apply(clones, images, train=False)
            return (soft_vote(logits) == truth[i]).mean()

        return jax.lax.map(agreeing, candidates)

    return jax.lax.map(of_batch, jnp.arange(len(truth))).mean(axis=0)


def average(averages: Array, new: Array) -> Array:
    """One step of every exponential average, [A, ...] and [...] -> [A, ...]."""
    decays = jnp.asarray(DECAYS, new.dtype).reshape(-1, *[1] * new.ndim)
    return decays * averages + (1 - decays) * new[None]
