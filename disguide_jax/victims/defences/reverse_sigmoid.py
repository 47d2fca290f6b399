"""The reverse sigmoid of Lee et al. (2018), which makes a sure victim look less sure."""

import jax
import jax.numpy as jnp

from disguide_jax.core.types import Array
from disguide_jax.victims.defences.kind import Defence, Kind, probabilities_only

EDGE = 1e-7  # probabilities are taken to be at least that far from 0 and 1, whose logits are none


class ReverseSigmoid(Defence):
    """Sends p - r, renormalised, with r = beta (sigmoid(gamma logit(p)) - 1/2).

    An answer p' then comes from a sure p as well as from an unsure one. With beta up to 1 the
    likeliest class stays so; with more p - r may fall below 0, which becomes 0.
    """

    beta: float
    gamma: float

    def __call__(self, images: Array, probs: Array) -> Array:
        """Probabilities [N, K] that sum to 1."""
        del images
        inside = jnp.clip(probs, EDGE, 1 - EDGE)
        logits = jnp.log(inside) - jnp.log1p(-inside)
        r = self.beta * (jax.nn.sigmoid(self.gamma * logits) - 0.5)
        left = jnp.maximum(inside - r, 0)
        total = left.sum(axis=-1, keepdims=True)
        return jnp.where(total > 0, left / jnp.where(total > 0, total, 1), probs)


KIND = Kind(
    name="reverse_sigmoid",
    keys=("beta", "gamma"),
    make=lambda owner: ReverseSigmoid(owner.victim.beta, owner.victim.gamma),
    about=lambda victim: f"reverse sigmoid with beta {victim.beta:g} and gamma {victim.gamma:g}",
    changes=probabilities_only,
)
