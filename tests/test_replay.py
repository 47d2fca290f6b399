"""The replay buffer against a plain list of entries, for any capacity, batch and rounds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disguide_jax.core import pixels, replay

properties = settings(max_examples=15, deadline=None, derandomize=True)
insert = jax.jit(replay.insert, donate_argnums=0)
sample_slots = jax.jit(replay.sample_slots, static_argnums=2)


def make_batch(first, num, labels):
    """Entries first, first + 1, ...: each is recognised by its pixels and by its answer."""
    number = np.arange(first, first + num)
    images = np.broadcast_to((number % 256 / 127.5 - 1).reshape(-1, 1, 1, 1), (num, 2, 2, 1))
    answers = number if labels else np.stack([number, -number], axis=1)
    return images.astype(np.float32), answers.astype(np.int32 if labels else np.float32)


def make_replay(capacity, batch_size, dtype=jnp.uint8, labels=False):
    images, answers = make_batch(0, batch_size, labels)
    return replay.init(
        capacity,
        jax.ShapeDtypeStruct(images.shape, dtype),
        jax.ShapeDtypeStruct(answers.shape, answers.dtype),
    )


@properties
@given(data=st.data(), capacity=st.integers(1, 12), labels=st.booleans())
def test_inserts_behave_as_a_plain_ring(data, capacity, labels):
    batch_size = data.draw(st.integers(1, capacity), "batch size")
    num_rounds = data.draw(st.integers(0, 3 * capacity // batch_size + 2), "rounds")
    ring = make_replay(capacity, batch_size, labels=labels)
    model_images = np.zeros(ring.images.shape, np.uint8)
    model_answers = np.zeros(ring.answers.shape, ring.answers.dtype)
    for round_ in range(num_rounds):
        images, answers = make_batch(1 + round_ * batch_size, batch_size, labels)
        ring = insert(ring, images, answers)
        for i in range(batch_size):
            slot = (round_ * batch_size + i) % capacity
            model_images[slot] = round((float(images[i, 0, 0, 0]) + 1) * 127.5)
            model_answers[slot] = answers[i]
    num_inserted = num_rounds * batch_size
    assert (int(ring.head), int(ring.size)) == (
        num_inserted % capacity,
        min(num_inserted, capacity),
    )
    np.testing.assert_array_equal(ring.images, model_images)
    np.testing.assert_array_equal(ring.answers, model_answers)


def test_the_newest_entries_stay_and_the_oldest_go():
    ring = make_replay(capacity=5, batch_size=2, labels=True)
    for first in range(0, 14, 2):
        ring = insert(ring, *make_batch(first, 2, labels=True))
    assert sorted(ring.answers.tolist()) == [9, 10, 11, 12, 13]
    assert int(ring.answers[ring.head]) == 9  # the oldest is the next to go


def test_a_batch_as_large_as_the_buffer_replaces_all_of_it():
    ring = make_replay(capacity=4, batch_size=4, labels=True)
    for first in (0, 4, 8):
        ring = insert(ring, *make_batch(first, 4, labels=True))
        assert ring.answers.tolist() == list(range(first, first + 4))
        assert (int(ring.head), int(ring.size)) == (0, 4)


def test_a_batch_larger_than_the_buffer_is_refused():
    ring = make_replay(capacity=4, batch_size=4)
    with pytest.raises(ValueError, match="batch of 5 does not fit a replay of 4"):
        replay.insert(ring, *make_batch(0, 5, labels=False))


@properties
@given(
    data=st.data(),
    num=st.sampled_from([1, 2, 7, 16]),
    seed=st.integers(0, 2**31 - 1),
)
def test_slots_are_filled_ones_and_never_repeat(data, num, seed):
    size = data.draw(st.integers(num, num + 20) | st.integers(num, 2_000_000), "size")
    slots = sample_slots(jax.random.key(seed), jnp.int32(size), num)
    assert slots.shape == (num,)
    assert slots.dtype == jnp.int32
    assert len(set(slots.tolist())) == num
    assert 0 <= int(slots.min()) <= int(slots.max()) < size


@pytest.mark.parametrize("num", [1, 2, 7, 64])
def test_as_many_as_there_are_gives_each_once(num):
    slots = sample_slots(jax.random.key(num), jnp.int32(num), num)
    assert sorted(slots.tolist()) == list(range(num))


@pytest.mark.parametrize(("size", "num"), [(5, 2), (6, 3), (5, 4), (4, 4), (9, 1)])
def test_every_subset_is_equally_likely(size, num):
    """Pearson's chi-squared, at a level that one seed in ten thousand would miss."""
    keys = jax.random.split(jax.random.key(7), 4000)
    slots = jax.vmap(lambda key: replay.sample_slots(key, jnp.int32(size), num))(keys)
    found = [tuple(sorted(row)) for row in slots.tolist()]
    subsets = list(itertools.combinations(range(size), num))
    expected = len(found) / len(subsets)
    chi_squared = sum((found.count(subset) - expected) ** 2 / expected for subset in subsets)
    freedom = len(subsets) - 1
    # Wilson and Hilferty: the cube root of chi-squared / freedom is nearly normal.
    spread = 2 / (9 * max(freedom, 1))
    assert (chi_squared / max(freedom, 1)) ** (1 / 3) < 1 - spread + 3.7 * spread**0.5


def test_samples_are_uniform_over_a_ring_that_is_far_from_full():
    """Also where the batch is a large part of what is there, so that Floyd's rule is at work."""
    keys = jax.random.split(jax.random.key(3), 2000)
    slots = jax.vmap(lambda key: replay.sample_slots(key, jnp.int32(24), 16))(keys)
    counts = np.bincount(np.asarray(slots).ravel(), minlength=24)
    expected, deviation = 2000 * 16 / 24, (2000 * 16 / 24 * 8 / 24) ** 0.5
    assert len(counts) == 24
    assert np.abs(counts - expected).max() < 4.5 * deviation


def test_batches_of_different_keys_differ_and_of_the_same_key_do_not():
    draw = [sample_slots(jax.random.key(k), jnp.int32(1000), 16).tolist() for k in (1, 2, 1)]
    assert draw[0] != draw[1]
    assert draw[0] == draw[2]


@properties
@given(data=st.data(), labels=st.booleans(), seed=st.integers(0, 2**31 - 1))
def test_a_sample_keeps_images_and_answers_together(data, labels, seed):
    capacity, batch_size = data.draw(st.sampled_from([(4, 4), (10, 4), (7, 2)]), "ring")
    num_rounds = data.draw(st.integers(1, 8), "rounds")
    ring = make_replay(capacity, batch_size, labels=labels)
    for round_ in range(num_rounds):
        ring = insert(ring, *make_batch(round_ * batch_size, batch_size, labels))
    images, answers = replay.sample(ring, jax.random.key(seed), batch_size)
    numbers = np.asarray(answers if labels else answers[:, 0]).astype(int)
    num_inserted = num_rounds * batch_size
    assert len(set(numbers.tolist())) == batch_size
    assert set(numbers.tolist()) <= set(range(num_inserted)[-capacity:])
    pixels = np.broadcast_to(numbers.reshape(-1, 1, 1, 1), images.shape)
    np.testing.assert_array_equal(np.round((np.asarray(images) + 1) * 127.5), pixels)
    if not labels:
        np.testing.assert_array_equal(answers[:, 1], -numbers)


# In proportion to a weight


@properties
@given(data=st.data(), seed=st.integers(0, 2**31 - 1), heavy=st.booleans())
def test_a_weighted_sample_is_distinct_too_however_few_there_are(data, seed, heavy):
    num_rounds = data.draw(st.integers(1, 4), "rounds")
    ring = make_replay(10, 4, labels=True)
    for round_ in range(num_rounds):
        ring = insert(ring, *make_batch(round_ * 4, 4, True))

    def weigh(images, answers):
        np.testing.assert_allclose(images[:, 0, 0, 0], answers % 256 / 127.5 - 1, atol=1e-6)
        # A loss of nothing can round to below zero.
        return jnp.where(answers == 0, 1e30, 0.0) if heavy else jnp.full(12, -1e-8)

    images, answers = replay.sample_by(ring, jax.random.key(seed), 4, 3, weigh)
    assert len(set(answers.tolist())) == 4
    assert set(answers.tolist()) <= set(range(4 * num_rounds)[-10:])
    np.testing.assert_allclose(images[:, 1, 1, 0], answers % 256 / 127.5 - 1, atol=1e-6)


def test_a_weighted_sample_comes_in_proportion_to_the_weights_of_uniform_candidates():
    """Two of four entries among six candidates: every subset against a plain simulation."""
    ring, weights = make_replay(4, 4, labels=True), np.array([1.0, 2.0, 4.0, 9.0])
    ring = insert(ring, *make_batch(0, 4, True))
    keys = jax.random.split(jax.random.key(11), 4000)

    @jax.vmap
    def draw(key):
        return replay.sample_by(ring, key, 2, 3, lambda _, answers: jnp.array(weights)[answers])[1]

    found = [tuple(sorted(row)) for row in draw(keys).tolist()]
    rng, expected = np.random.default_rng(0), []
    for _ in range(20_000):
        there = sorted({s for _ in range(3) for s in rng.choice(4, 2, replace=False).tolist()})
        share = weights[there] / weights[there].sum()
        expected.append(tuple(sorted(rng.choice(there, 2, replace=False, p=share).tolist())))
    for pair in itertools.combinations(range(4), 2):
        share = expected.count(pair) / len(expected)
        tolerance = 4 * (share / len(found)) ** 0.5
        assert abs(found.count(pair) / len(found) - share) < tolerance, pair


def test_one_weight_for_each_candidate_is_needed():
    ring = insert(make_replay(4, 4, labels=True), *make_batch(0, 4, True))
    with pytest.raises(AssertionError):
        replay.sample_by(ring, jax.random.key(0), 2, 3, lambda images, answers: jnp.ones(2))


# Encoding


@properties
@given(st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=8))
def test_eight_bits_keep_the_nearest_of_256_levels(values):
    images = np.array(values, np.float32)
    stored = np.asarray(pixels.encode(jnp.array(images), jnp.uint8))
    assert stored.dtype == np.uint8
    levels = np.arange(256) / 127.5 - 1
    nearest = np.abs(images[:, None].astype(np.float64) - levels).min(axis=1)
    decoded = np.asarray(pixels.decode(jnp.array(stored)))
    assert decoded.dtype == np.float32
    assert (np.abs(decoded) <= 1).all()
    np.testing.assert_allclose(np.abs(decoded - images), nearest, atol=1e-6)


def test_each_of_the_256_levels_survives_any_number_of_round_trips():
    stored = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(pixels.encode(pixels.decode(stored), jnp.uint8), stored)
    assert pixels.decode(stored)[jnp.array([0, 255])].tolist() == [-1.0, 1.0]


def test_what_lies_outside_the_range_is_clipped_not_wrapped():
    stored = pixels.encode(jnp.array([-1.5, -1.0, 1.0, 1.01]), jnp.uint8)
    assert stored.tolist() == [0, 0, 255, 255]


@properties
@given(st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=8))
def test_floats_are_kept_as_well_as_their_type_can(values):
    images = jnp.array(values, jnp.float32)
    np.testing.assert_array_equal(pixels.decode(pixels.encode(images, jnp.float32)), images)
    stored = pixels.encode(images, jnp.bfloat16)
    assert stored.dtype == jnp.bfloat16
    decoded = pixels.decode(stored)
    assert decoded.dtype == jnp.float32
    np.testing.assert_allclose(decoded, images, rtol=2**-8, atol=1e-37)


def test_double_precision_is_not_lost():
    with jax.enable_x64(True):
        images = jnp.array([1 / 3, -0.1])
        assert images.dtype == jnp.float64
        stored = pixels.encode(images, jnp.float64)
        assert pixels.decode(stored).dtype == jnp.float64
        np.testing.assert_array_equal(pixels.decode(stored), images)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bfloat16, jnp.float32])
def test_the_buffer_stores_its_own_type_and_samples_floats(dtype):
    ring = make_replay(capacity=6, batch_size=4, dtype=dtype)
    images, answers = make_batch(100, 4, labels=False)
    ring = insert(ring, images, answers)
    assert ring.images.dtype == dtype
    sampled, their_answers = replay.sample(ring, jax.random.key(0), 4)
    assert sampled.dtype == jnp.float32
    order = np.argsort(np.asarray(their_answers[:, 0]))
    np.testing.assert_allclose(np.asarray(sampled)[order], images, atol=1 / 128)
    np.testing.assert_array_equal(np.asarray(their_answers)[order], answers)


def test_batches_that_are_not_shaped_like_the_buffer_are_refused():
    ring, (images, answers) = make_replay(8, 4), make_batch(0, 4, labels=False)
    for wrong in (
        (images[:, :1], answers),  # would be broadcast
        (images[0], answers),
        (images, answers[:1]),
        (images, answers[:, :1]),
        (images, answers[:, 0]),
    ):
        with pytest.raises(AssertionError):
            replay.insert(ring, *wrong)
    with pytest.raises(AssertionError):
        replay.sample(ring, jax.random.split(jax.random.key(0)), 2)
