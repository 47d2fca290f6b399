"""The reverse sigmoid of Lee et al. (2018), which makes a sure victim look less sure."""

import jax
import jax.numpy as jnp

from disguide_jax.core.types import Array
from disguide_jax.victims.defences.kind import Defence, Kind, both

FLOOR = 1e-30  # below which a probability has no logit in float32


class ReverseSigmoid(Defence):
    """Sends p - r, renormalised, with r = beta (sigmoid(gamma logit(p)) - 1/2).

    An answer p' then comes from a sure p as well as from an unsure one. With beta up to 1 a class
    that has more than 1/2 stays the likeliest; an unsure answer may come to name another. What
    falls below 0, as it may with a larger beta, is sent as 0.
    """

    beta: float
    gamma: float

    def __call__(self, images: Array, probs: Array) -> Array:
        """Probabilities [N, K] that sum to 1."""
        del images
        # 1 - p of a sure p has no digits left; the sum of the others has.
        others = 1 - jnp.eye(probs.shape[-1], dtype=probs.dtype)
        rest = jnp.matmul(probs, others, precision="highest")
        logits = jnp.log(jnp.maximum(probs, FLOOR)) - jnp.log(jnp.maximum(rest, FLOOR))
        r = self.beta * (jax.nn.sigmoid(self.gamma * logits) - 0.5)
        left = jnp.maximum(probs - r, 0)
        total = left.sum(axis=-1, keepdims=True)
        return jnp.where(total > 0, left / jnp.where(total > 0, total, 1), probs)


KIND = Kind(
    name="reverse_sigmoid",
    keys=("sigmoid_beta", "sigmoid_gamma"),
    make=lambda owner: ReverseSigmoid(owner.victim.sigmoid_beta, owner.victim.sigmoid_gamma),
    about=lambda victim: (
        f"reverse sigmoid with beta {victim.sigmoid_beta:g} and gamma {victim.sigmoid_gamma:g}"
    ),
    changes=both,
)
