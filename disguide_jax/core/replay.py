"""Experience replay: a circular buffer of answered queries that lives on the device (Section 3.2).

The buffer never leaves the device inside a step: callers donate it. Shapes: R capacity,
N batch, K classes; images are [N, H, W, channels] in [-1, 1].
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from disguide_jax.core import choose, mesh, pixels

Array = jax.Array
Like = Array | jax.ShapeDtypeStruct  # of which only shape and dtype matter


class Replay(struct.PyTreeNode):
    """Answered queries. Slot `head` is written next; the first `size` slots are filled."""

    images: Array  # [R, H, W, channels], float32, bfloat16 or uint8
    answers: Array  # [R, K] probabilities, or [R] int32 labels
    head: Array  # [] int32
    size: Array  # [] int32


def init(capacity: int, images: Like, answers: Like) -> Replay:
    """An empty buffer for batches shaped [N, ...] like `images` and `answers`.

    Raises:
      AssertionError: N differs.
    """
    chex.assert_equal_shape_prefix([images, answers], 1)
    return Replay(
        images=jnp.zeros((capacity, *images.shape[1:]), images.dtype),
        answers=jnp.zeros((capacity, *answers.shape[1:]), answers.dtype),
        head=jnp.zeros((), jnp.int32),
        size=jnp.zeros((), jnp.int32),
    )


def insert(replay: Replay, images: Array, answers: Array) -> Replay:
    """Writes a batch at the head, over the oldest entries once the buffer is full.

    Raises:
      AssertionError: images or answers are not shaped like the buffer's, or N differs.
      ValueError: the batch is larger than the buffer, so that slots would collide.
    """
    chex.assert_shape(images, (None, *replay.images.shape[1:]))
    chex.assert_shape(answers, (len(images), *replay.answers.shape[1:]))
    capacity, batch_size = replay.images.shape[0], images.shape[0]
    if batch_size > capacity:
        raise ValueError(f"a batch of {batch_size} does not fit a replay of {capacity}")
    # Not dynamic_update_slice: it clamps at the end, and 1_000_000 is no multiple of 256.
    slots = (replay.head + jnp.arange(batch_size, dtype=jnp.int32)) % capacity

    def put(ring: Array, rows: Array) -> Array:
        return ring.at[slots].set(rows, mode="promise_in_bounds", unique_indices=True)

    return replay.replace(
        images=put(replay.images, pixels.encode(images, replay.images.dtype)),
        answers=put(replay.answers, answers.astype(replay.answers.dtype)),
        head=(replay.head + batch_size) % capacity,
        size=jnp.minimum(replay.size + batch_size, capacity),
    )


def sample(replay: Replay, key: Array, batch_size: int) -> tuple[Array, Array]:
    """A uniform batch of distinct entries: images as float and their answers.

    Needs `size >= batch_size`.

    Raises:
      AssertionError: it is not one key.
    """
    slots = mesh.by_each(sample_slots)(key, replay.size, batch_size)
    return pixels.decode(replay.images[slots]), replay.answers[slots]


def sample_by(
    replay: Replay,
    key: Array,
    batch_size: int,
    candidates: int,
    weigh: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
    """A batch of distinct entries, drawn in proportion to a weight among uniform candidates.

    Weights are computed anew for the few candidates. To keep one in every slot would need no
    forward pass, but a larger state to save, and weights as old as the entry's last visit: a
    slot of a million comes up once in a thousand rounds.

    Needs `size >= batch_size`.

    Args:
      replay: that is drawn from.
      key: consumed.
      batch_size: N.
      candidates: uniform batches that are drawn first; no entry comes up more often than that.
      weigh: images [M, ...] and their answers -> weights [M], M = candidates * N.

    Returns:
      Images as float and their answers.

    Raises:
      AssertionError: it is not one key, or there is not one weight for each candidate.
    """
    chex.assert_rank(key, 0)
    choose_key, *keys = jax.random.split(key, 1 + candidates)
    draw = mesh.by_each(sample_slots)
    slots = jnp.concatenate([draw(k, replay.size, batch_size) for k in keys])
    images, answers = pixels.decode(replay.images[slots]), replay.answers[slots]
    weights = weigh(images, answers)
    chex.assert_shape(weights, (candidates * batch_size,))
    # The first batch alone has N distinct slots, so that repeats are never needed; an entry
    # whose loss is 0, or rounds to below it, is still better than one.
    earlier = jnp.tri(len(slots), k=-1, dtype=bool)
    repeats = (earlier & (slots[:, None] == slots[None, :])).any(axis=1)
    weights = jnp.where(repeats, 0, jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))
    chosen = choose.in_proportion(choose_key, weights, batch_size)
    return images[chosen], answers[chosen]


def sample_slots(key: Array, size: Array, num: int) -> Array:
    """`num` distinct integers below `size` [num], every subset equally likely.

    Floyd's algorithm (Bentley and Floyd, 1987), solved as a fixed point: element i draws t_i
    from [0, size - num + i] and, if t_i is among the elements before it, takes size - num + i
    instead. One or two sweeps settle it when size >> num; a permutation of a million never
    happens.

    Raises:
      AssertionError: key or size is no scalar.
    """
    chex.assert_rank([key, size], 0)
    last = size - num + jnp.arange(num, dtype=jnp.int32)  # the value that only i can take
    drawn = jax.random.randint(key, (num,), 0, last + 1, jnp.int32)
    earlier = jnp.tri(num, k=-1, dtype=bool)

    def sweep(slots: Array) -> Array:
        taken = (earlier & (drawn[:, None] == slots[None, :])).any(axis=1)
        return jnp.where(taken, last, drawn)

    def unsettled(slots: tuple[Array, Array]) -> Array:
        return (slots[0] != slots[1]).any()

    return jax.lax.while_loop(unsettled, lambda s: (s[1], sweep(s[1])), (drawn, sweep(drawn)))[1]
