"""Which few of many: the best of every class in turn, or each as often as it weighs."""

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


def in_proportion(key: Array, weights: Array, num: int) -> Array:
    """`num` draws without replacement, each in proportion to the weights that are left.

    By Gumbel's trick (Kool et al., ICML 2019): the largest of log w_i - log(-log u_i).

    Args:
      key: consumed.
      weights: [M], >= 0; of weight 0 is drawn only when nothing else is left.
      num: from 0 to M.

    Returns:
      Distinct indices [num], in the order of the draws.

    Raises:
      AssertionError: of other shapes, or of fewer weights than `num`.
    """
    chex.assert_rank([key, weights], [0, 1])
    chex.assert_axis_dimension_gteq(weights, 0, num)
    noise = jax.random.gumbel(key, weights.shape, weights.dtype)
    return jax.lax.top_k(jnp.log(weights) + noise, num)[1]
