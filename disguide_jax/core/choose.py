"""Which few of many: the best of every class in turn."""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def evenly(scores: Array, classes: Array, num: int) -> Array:
    """The `num` highest scores, even over classes.

    The classes take turns with the best that each has left: first the best of every class in
    the order of their scores, then the second of every class, and so on. So no class gets more
    than its share while another, that has any left, gets less.

    Args:
      scores: [M], the higher the better.
      classes: [M] integers, of any range.
      num: from 0 to M.

    Returns:
      Distinct indices [num]; of equal scores the first come first.

    Raises:
      AssertionError: of other shapes, or of fewer scores than `num`.
    """
    chex.assert_rank(scores, 1)
    chex.assert_equal_shape([scores, classes])
    chex.assert_axis_dimension_gteq(scores, 0, num)
    by_class = jnp.lexsort((-scores, classes))  # class after class, each from its best
    grouped = classes[by_class]
    turns = jnp.arange(len(scores)) - jnp.searchsorted(grouped, grouped)  # 0 for each one's best
    turns = jnp.zeros_like(turns).at[by_class].set(turns, unique_indices=True)
    return jnp.lexsort((-scores, turns))[:num]
