"""The label and nothing else."""

from disguide_jax.core import answers
from disguide_jax.core.types import Array
from disguide_jax.victims.defences.kind import Defence, Kind


class LabelOnly(Defence):
    """Names the likeliest class."""

    def __call__(self, images: Array, probs: Array) -> Array:
        """Labels [N] int32."""
        del images
        return answers.to_labels(probs)


KIND = Kind(
    name="label_only",
    keys=(),
    make=lambda owner: LabelOnly(),
    about=lambda victim: "answers with labels alone",
    changes=lambda victim: ("hard",),
)
