"""Adaptive misinformation (Kariyappa and Qureshi, CVPR 2020): who asks oddly is answered wrongly.

Where a victim is unsure its answer is mixed with that of another network f, which has learnt to
give the true class no probability. The paper trains f with the victim's own architecture, and
the victim anew with outliers. Here the victim is left as it is, and f is small: to avoid the true
class is much easier than to find it. It learns from the owner's labelled images before the run
begins, always in the same way: on one machine a run that continues has the same f, up to what
the device itself rounds differently from time to time.
"""

import jax
import jax.numpy as jnp

from disguide_jax import models
from disguide_jax.config import VictimTrainingConfig
from disguide_jax.core import losses, supervised
from disguide_jax.core.types import Array
from disguide_jax.victims import network
from disguide_jax.victims.defences.kind import Defence, Kind, Owner, both

UPDATES, BATCH_SIZE, LEARNING_RATE = 600, 64, 0.1  # a lower rate stays where all are alike


class Misinformation(Defence):
    """Sends (1 - a) p + a f(x), with a = sigmoid(nu (tau - max p))."""

    wrong: network.Victim  # f, which answers with probabilities
    nu: float
    tau: float

    def __call__(self, images: Array, probs: Array) -> Array:
        """Probabilities [N, K] that sum to 1."""
        unsure = self.tau - probs.max(axis=-1, keepdims=True)
        a = jax.nn.sigmoid(self.nu * unsure)
        return (1 - a) * probs + a * self.wrong(images)


def make(owner: Owner) -> Misinformation:
    """Trains the network f, which avoids the true class.

    Raises:
      UserError: there are no labelled images, or none of a size that f takes.
    """
    config, task, split = owner.victim, owner.task, owner.train_split()
    net = models.make_classifier(
        config.misinformation_model,
        num_classes=task.num_classes,
        size=task.size,
        channels=task.channels,
    )
    batch_size = min(BATCH_SIZE, len(split.labels))
    steps_per_epoch = len(split.labels) // batch_size
    training = VictimTrainingConfig(
        name="misinformation",
        dataset="",
        model=config.misinformation_model,
        epochs=-(-UPDATES // steps_per_epoch),
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        crop_padding=0,
        flip=False,
    )
    tx = supervised.make_optimizer(training, steps_per_epoch)
    train_set = supervised.Images(*map(jnp.asarray, split))
    step = jax.jit(
        supervised.make_train_step(training, net, tx, task, losses.reverse_cross_entropy)
    )
    state = jax.jit(lambda: supervised.init_state(training, net, tx, len(split.labels)))()
    for _ in range(UPDATES):
        state, _ = step(state, train_set)
    wrong = network.make_victim(
        net,
        state.network.variables,
        mean=task.mean,
        std=task.std,
        hard_labels=False,
        knows_transform=config.input_space == "post-transform",
    )
    return Misinformation(wrong, config.misinformation_nu, config.misinformation_tau)


KIND = Kind(
    name="misinformation",
    keys=("misinformation_nu", "misinformation_tau", "misinformation_model"),
    make=make,
    about=lambda victim: (
        f"misinforms who makes it less sure than {victim.misinformation_tau:g} "
        f"(nu {victim.misinformation_nu:g}, by a {victim.misinformation_model})"
    ),
    changes=both,
    learns=True,
)
