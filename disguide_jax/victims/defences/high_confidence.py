"""Only what a victim is sure of: what is under a cut-off is 0."""

import jax
import jax.numpy as jnp

from disguide_jax.core import answers
from disguide_jax.core.types import Array
from disguide_jax.victims.defences.kind import Defence, Kind, probabilities_only


class HighConfidence(Defence):
    """Hides classes under a cut-off, but for the likeliest: a classifier must answer something."""

    cut_off: float

    def __call__(self, images: Array, probs: Array) -> Array:
        """Probabilities [N, K], 0 for classes that are not named; the others are as they were."""
        del images
        likeliest = jax.nn.one_hot(jnp.argmax(probs, axis=-1), probs.shape[-1], dtype=bool)
        return jnp.where((probs >= self.cut_off) | likeliest, probs, 0)

    def read(self, sent: Array) -> Array:
        """What is left of 1 goes evenly to the classes that are not named."""
        return answers.whole(sent, spread=True)


KIND = Kind(
    name="high_confidence",
    keys=("cut_off",),
    make=lambda owner: HighConfidence(owner.victim.cut_off),
    about=lambda victim: f"hides what is under {victim.cut_off:g}",
    changes=probabilities_only,
)
