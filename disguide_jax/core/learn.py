"""The one gradient step, the optimisers, their schedule over the budget, and averages.

Schedules count updates, and a round makes several of them: boundaries are given in rounds
here and multiplied once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from disguide_jax.core.answers import CloneLoss
from disguide_jax.core.types import Array, Average, Learner, Metrics, Net, Variables

LossFn = Callable[[Any], tuple[Array, tuple[Any, Metrics]]]  # params -> loss, (batch_stats, ...)


def learn(
    learner: Learner, tx: optax.GradientTransformation, loss_fn: LossFn
) -> tuple[Learner, Array, Metrics]:
    """One optimiser step on a loss.

    Args:
      learner: that learns.
      tx: its optimiser.
      loss_fn: params -> (loss, (batch_stats, metrics)).

    Returns:
      The learner after the step, the loss before it, and the metrics.

    Raises:
      AssertionError: the loss is no scalar.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (batch_stats, metrics)), grads = value_and_grad(learner.params)
    chex.assert_rank(loss, 0)
    return descend(learner, tx, grads, batch_stats), loss, metrics


def descend(
    learner: Learner, tx: optax.GradientTransformation, grads: Any, batch_stats: Any
) -> Learner:
    """One optimiser step with the gradient of the parameters, and new statistics.

    Raises:
      AssertionError: the gradient is not shaped like the parameters.
    """
    chex.assert_trees_all_equal_shapes(grads, learner.params)
    updates, opt_state = tx.update(grads, learner.opt_state, learner.params)
    return Learner(optax.apply_updates(learner.params, updates), batch_stats, opt_state)


def start(variables: Variables, tx: optax.GradientTransformation) -> Learner:
    """A learner before its first step."""
    return Learner(*variables, tx.init(variables.params))


def start_again(
    learner: Learner, variables: Variables, tx: optax.GradientTransformation
) -> Learner:
    """The same learner with fresh variables, whose learning rate goes on as scheduled.

    Of the optimiser only the schedule's count is kept. Adam's own begins anew with its
    moments: moments of zero under an old count would be taken for settled ones, and the first
    steps be 3 to 6 times the learning rate.
    """

    def of_schedule(path: tuple[object, ...], _: object) -> bool:
        return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"

    fresh = start(variables, tx)
    count = optax.tree_utils.tree_get(learner.opt_state, "count", filtering=of_schedule)
    if count is None:  # a constant learning rate
        return fresh
    opt_state = optax.tree_utils.tree_set(fresh.opt_state, of_schedule, count=count)
    return fresh._replace(opt_state=opt_state)


def teach(
    clones: Learner,
    net: Net,
    tx: optax.GradientTransformation,
    loss_fn: CloneLoss,
    images: Array,
    answers: Array,
) -> tuple[Learner, Metrics]:
    """One optimiser step on all clones, with the same answered batch, in train mode.

    Args:
      clones: stacked on axis 0.
      net: images [N, H, W, channels] -> logits [C, N, K].
      tx: one optimiser over all of them.
      loss_fn: of the kind of answers.
      images: [N, H, W, channels], as they were sent.
      answers: [N, K] or [N].

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank([images, answers], [4, {1, 2}])
    chex.assert_equal_shape_prefix([images, answers], 1)

    def summed_loss(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        variables = Variables(params, clones.batch_stats)
        logits, batch_stats = net.apply(variables, images, train=True)
        chex.assert_shape(logits, (None, len(images), None))
        per_clone = loss_fn(logits, answers).mean(axis=-1)
        # Parameters are disjoint: the gradient of the sum is each clone's own.
        return per_clone.sum(), (batch_stats, {"clones/loss": per_clone.mean()})

    learner, _, metrics = learn(clones, tx, summed_loss)
    return learner, metrics


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """PyTorch's SGD: the decay joins the gradient, of every parameter, before the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum)
    )


def adam(
    learning_rate: optax.ScalarOrSchedule, *, weight_decay: float, b1: float = 0.9
) -> optax.GradientTransformation:
    """PyTorch's Adam (not AdamW): the decay joins the gradient before the moments."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate, b1=b1))


def boundaries(
    fractions: Sequence[float], *, factor: float, block_rounds: int, num_rounds: int
) -> dict[int, float]:
    """Rounds after which the learning rates are scaled, and by how much.

    With blocks these are the boundaries of the authors' code, which counts one block more than
    fits: E = num_rounds // block_rounds + 1, and a drop after int(fraction * E) blocks. A run
    of so few blocks that it would begin at a reduced rate goes by single rounds, and no
    boundary comes before the first round is done.

    Args:
      fractions: of all rounds, growing.
      factor: of the learning rate at each.
      block_rounds: 150 in the authors' code; 1 for no blocks.
      num_rounds: of the run.
    """
    blocks = num_rounds // block_rounds + 1
    if block_rounds == 1 or int(min(fractions, default=1) * blocks) == 0:
        block_rounds, blocks = 1, num_rounds
    scales: dict[int, float] = {}
    for fraction in fractions:
        at = max(1, int(fraction * blocks) * block_rounds)
        scales[at] = scales.get(at, 1.0) * factor
    return scales


def start_average(clones: Learner) -> Average:
    """The average before the first round with these clones."""
    return Average(clones.variables, jnp.zeros((), jnp.int32))


def follow(average: Average, clones: Learner, decay: float) -> Average:
    """The average after one more round.

    The decay of the average of t rounds is at most t / (9 + t), so that it forgets how the
    clones were initialised.

    Raises:
      AssertionError: the clones are not shaped like those that it has followed.
    """
    chex.assert_trees_all_equal_shapes(average.clones, clones.variables)
    rounds = average.rounds + 1
    kept = jnp.minimum(decay, rounds / (9 + rounds))
    variables = jax.tree.map(
        lambda a, c: kept * a + (1 - kept) * c, average.clones, clones.variables
    )
    return Average(variables, rounds)
