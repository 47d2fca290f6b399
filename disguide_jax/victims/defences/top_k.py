"""The likeliest classes alone (Tramer et al., 2016)."""

import jax
from flax import struct

from disguide_jax.core import answers
from disguide_jax.core.types import Array
from disguide_jax.victims.defences.kind import Defence, Kind, probabilities_only


class TopK(Defence):
    """Hides all but the `num` likeliest classes; among equals the first are named."""

    num: int = struct.field(pytree_node=False)

    def __call__(self, images: Array, probs: Array) -> Array:
        """Probabilities [N, K], 0 for classes that are not named; the others are as they were."""
        del images
        num_classes = probs.shape[-1]
        _, classes = jax.lax.top_k(probs, min(self.num, num_classes))
        named = jax.nn.one_hot(classes, num_classes, dtype=probs.dtype).sum(axis=-2)
        return probs * named

    def read(self, sent: Array) -> Array:
        """What is left of 1 goes evenly to the classes that are not named."""
        return answers.whole(sent, spread=self.num < sent.shape[-1])


KIND = Kind(
    name="top_k",
    keys=("top_k",),
    make=lambda owner: TopK(owner.victim.top_k),
    about=lambda victim: f"names the top {victim.top_k} of its classes",
    changes=probabilities_only,
    usual={"top_k": 1},
)
