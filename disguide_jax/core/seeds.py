"""Several runs that differ in their seeds alone, S of them, played by one program.

Their state has the leaves of one, with a first axis of S more; but all share their counters.
What decides by a counter is then decided once: a counter for each seed would make a select of
every `cond`, and compute both of its sides.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from disguide_jax.core.exchange import Play
from disguide_jax.core.types import Ask, Metrics, TrainState


@jax.jit
def stack(states: Sequence[TrainState]) -> TrainState:
    """The states of several seeds, after as many rounds, as one."""
    return _counting_as(states[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


@jax.jit
def take(state: TrainState, index: int) -> TrainState:
    """A copy of one seed's state."""
    return jax.tree.map(lambda x: x[index] if x.ndim else x, state)  # counters have no axis


@jax.jit
def put(state: TrainState, index: int, one: TrainState) -> TrainState:
    """The states of several seeds, of which one takes the networks of another state."""

    def replaced(of_all: Any, new: Any) -> Any:
        return jax.tree.map(lambda x, y: x.at[index].set(y), of_all, new)

    return state.replace(
        generator=replaced(state.generator, one.generator),
        clones=replaced(state.clones, one.clones),
        average=replaced(state.average, one.average),
    )


def over(play: Play) -> Play:
    """A round of all seeds, against one victim; metrics are [S]."""

    def several(state: TrainState, victim: Ask) -> tuple[TrainState, Metrics]:
        axes = _counting_as(None, jax.tree.map(lambda _: 0, state))
        return jax.vmap(play, in_axes=(axes, None), out_axes=(axes, 0))(state, victim)

    return several


def _counting_as(other: TrainState | None, state: Any) -> Any:
    """A state with the counters of another; None: with None in their place."""
    head, size = (other.replay.head, other.replay.size) if other else (None, None)
    return state.replace(
        round=other.round if other else None,
        queries=other.queries if other else None,
        replay=state.replay.replace(head=head, size=size),
    )
