"""Probabilities rounded to a few decimals, the commonest defence (Tramer et al., 2016)."""

import jax.numpy as jnp
from flax import struct

from disguide_jax.core import answers
from disguide_jax.core.types import Array
from disguide_jax.victims.defences.kind import Defence, Kind, probabilities_only


class Rounding(Defence):
    """Rounds to the nearest, halves to even; what is sent need not sum to 1."""

    decimals: int = struct.field(pytree_node=False)

    def __call__(self, images: Array, probs: Array) -> Array:
        """Probabilities [N, K], rounded."""
        del images
        return jnp.round(probs, self.decimals)

    def read(self, sent: Array) -> Array:
        """What became 0 counts as half a unit."""
        return answers.whole(sent, decimals=self.decimals)


KIND = Kind(
    name="round",
    keys=("decimals",),
    make=lambda owner: Rounding(owner.victim.decimals),
    about=lambda victim: f"rounds to {victim.decimals} decimal{'s' * (victim.decimals > 1)}",
    changes=probabilities_only,
    usual={"decimals": 1},
)
