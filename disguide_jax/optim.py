"""The optimisers and their schedule over the query budget.

Schedules count updates, and a round makes several of them: boundaries are given in rounds
here and multiplied once.
"""

import optax

from disguide_jax.config import Config, ScheduleConfig
from disguide_jax.state import Optimizers


def make_optimizers(
    config: Config, *, num_rounds: int, generator_updates: int, clone_updates: int
) -> Optimizers:
    """Adam or SGD for the generator, SGD with momentum for all clones together.

    Args:
      config: of the run.
      num_rounds: rounds in the whole budget.
      generator_updates: generator updates in one round.
      clone_updates: clone updates in one round.
    """
    boundaries = schedule_boundaries(config.schedule, num_rounds)

    def schedule(learning_rate: float, updates_per_round: int) -> optax.Schedule:
        if config.schedule.shape == "cosine":
            return optax.cosine_decay_schedule(learning_rate, num_rounds * updates_per_round)
        return optax.piecewise_constant_schedule(
            learning_rate,
            {at * updates_per_round: scale for at, scale in boundaries.items()},
        )

    generator, clones = config.generator, config.clones
    rate = schedule(generator.learning_rate, generator_updates)
    return Optimizers(
        generator=(
            sgd(rate, momentum=generator.momentum, weight_decay=generator.weight_decay)
            if generator.optimizer == "sgd"
            else adam(rate, generator.weight_decay)
        ),
        clones=sgd(
            schedule(clones.learning_rate, clone_updates),
            momentum=clones.momentum,
            weight_decay=clones.weight_decay,
        ),
    )


def schedule_boundaries(schedule: ScheduleConfig, num_rounds: int) -> dict[int, float]:
    """Rounds after which the learning rates are scaled, and by how much."""
    boundaries: dict[int, float] = {}
    for fraction in schedule.fractions:
        at = int(fraction * num_rounds) // schedule.block_rounds * schedule.block_rounds
        boundaries[at] = boundaries.get(at, 1.0) * schedule.factor
    return boundaries


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """PyTorch's SGD: the decay joins the gradient, of every parameter, before the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum)
    )


def adam(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, *, b1: float = 0.9
) -> optax.GradientTransformation:
    """PyTorch's Adam (not AdamW): the decay joins the gradient before the moments."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate, b1=b1))
