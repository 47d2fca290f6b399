"""The optimisers and their schedule over the query budget.

Schedules count updates, and a round makes several of them: boundaries are given in rounds
here and multiplied once.
"""

from typing import Any

import optax

from disguide_jax.config import Config, ScheduleConfig
from disguide_jax.state import Optimizers


def make_optimizers(
    config: Config, *, num_rounds: int, generator_updates: int, clone_updates: int
) -> Optimizers:
    """Adam or SGD for the generator, SGD with momentum for all clones together.

    Args:
      config: of the run.
      num_rounds: whole rounds in the budget.
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
    generator_rate = schedule(generator.learning_rate, generator_updates)
    clones_rate = schedule(clones.learning_rate, clone_updates)
    return Optimizers(
        generator=(
            sgd(generator_rate, momentum=generator.momentum, weight_decay=generator.weight_decay)
            if generator.optimizer == "sgd"
            else adam(generator_rate, generator.weight_decay)
        ),
        clones=sgd(clones_rate, momentum=clones.momentum, weight_decay=clones.weight_decay),
        generator_rate=lambda num_rounds: generator_rate(num_rounds * generator_updates),
        clones_rate=lambda num_rounds: clones_rate(num_rounds * clone_updates),
    )


def schedule_boundaries(schedule: ScheduleConfig, num_rounds: int) -> dict[int, float]:
    """Rounds after which the learning rates are scaled, and by how much.

    With blocks these are the boundaries of the authors' code, which counts one block more than
    fits: E = num_rounds // block_rounds + 1, and a drop after int(fraction * E) blocks. A run
    of so few blocks that it would begin at a reduced rate goes by single rounds, and no
    boundary comes before the first round is done.
    """
    size = schedule.block_rounds
    blocks = num_rounds // size + 1
    if size == 1 or int(min(schedule.fractions, default=1) * blocks) == 0:
        size, blocks = 1, num_rounds
    boundaries: dict[int, float] = {}
    for fraction in schedule.fractions:
        at = max(1, int(fraction * blocks) * size)
        boundaries[at] = boundaries.get(at, 1.0) * schedule.factor
    return boundaries


def start_again(
    tx: optax.GradientTransformation, params: Any, before: optax.OptState
) -> optax.OptState:
    """The state of a fresh optimiser whose learning rate goes on as scheduled.

    Only the schedule's count is kept. Adam's own begins anew with its moments: moments of zero
    under an old count would be taken for settled ones, and the first steps be 3 to 6 times the
    learning rate.
    """

    def of_schedule(path: tuple, _: Any) -> bool:
        return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"

    count = optax.tree_utils.tree_get(before, "count", filtering=of_schedule)
    fresh = tx.init(params)
    if count is None:  # a constant learning rate
        return fresh
    return optax.tree_utils.tree_set(fresh, of_schedule, count=count)


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
