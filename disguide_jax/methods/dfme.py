"""DFME (Truong et al., CVPR 2021): the generator climbs the clones' error by forward differences.

One round:
1. one generator update. N images, and N more for each of the m directions, are sent to the
   victim. Generator in train mode, clones in eval mode.
2. `clones.steps` times a fresh batch from the updated generator, sent to the victim, and one
   update of the clones with it. Generator and clones in train mode.

Nothing is replayed. With several clones the gradient is the mean of theirs.
"""

from typing import Any

from disguide_jax.config import Config
from disguide_jax.core import learn, zeroth_order
from disguide_jax.core.exchange import Kit, Method, Round
from disguide_jax.core.types import Array, Metrics, Stage, TrainState

GENERATOR, DIRECTIONS, CLONES = range(3)  # streams of randomness


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage, in which a round costs 1 + m + `clones.steps` batches."""
    steps = config.clones.steps
    queries = config.batch_size * (1 + config.zeroth_order.directions + steps)
    rounds = config.query_budget // queries
    return (Stage("extraction", rounds, queries, generator_updates=1, clone_updates=steps),)


def scale(estimate: zeroth_order.Estimate, *, soft_loss: str) -> Array:
    """The gradient [N, H, W, channels] in the authors' scale, which Adam hardly minds.

    With the absolute error, a mean over K already, theirs is divided by N and by K once more;
    with other losses it is the sum over the batch.
    """
    return estimate.gradient / (estimate.answers.size if soft_loss == "l1" else 1)


def make_round(kit: Kit, stage: Stage) -> Round:
    """A generator update with answers, then fresh batches."""
    del stage
    soft_loss, steps = kit.config.clones.soft_loss, kit.config.clones.steps

    def update_generator(
        state: TrainState, proposal: zeroth_order.Proposal, images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        del images
        clones, estimate = zeroth_order.ask_clones(
            kit, state.clones, proposal, answers, train=False
        )
        (grads,) = proposal.pull_back(scale(estimate, soft_loss=soft_loss))
        generator = learn.descend(state.generator, kit.tx.generator, grads, proposal.batch_stats)
        metrics = {"gen/loss": estimate.losses.mean()}
        return state.replace(generator=generator, clones=clones), metrics

    def learn_fresh(
        state: TrainState, batch_stats: Any, images: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        return zeroth_order.learn_fresh(kit, state, batch_stats, images, answers)

    return (
        zeroth_order.exchange(kit, GENERATOR, DIRECTIONS, update_generator),
        zeroth_order.fresh(kit, CLONES, learn_fresh, num_keys=steps, times=steps),
    )


METHOD = Method(
    "dfme",
    zeroth_order.check,
    stages,
    make_round,
    ignores=("generator.diversity_weight", "replay.", "disguide.", "dfms.", "as_in_text"),
)
