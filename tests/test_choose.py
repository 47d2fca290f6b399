"""Which few of many are chosen, against plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disguide_jax.core import choose

properties = settings(max_examples=60, deadline=None, derandomize=True)
evenly = jax.jit(choose.evenly, static_argnums=2)


def plain(scores, classes, num):
    """One list for each class, from its best; all lists are served in turn."""
    lists = {}
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):  # stable
        lists.setdefault(classes[i], []).append(i)
    chosen = []
    while len(chosen) < num:
        heads = [members.pop(0) for members in lists.values() if members]
        chosen += sorted(heads, key=lambda i: (-scores[i], i))
    return chosen[:num]


@properties
@given(st.data())
def test_the_classes_take_turns_with_the_best_that_each_has_left(data):
    size = data.draw(st.sampled_from([1, 2, 9]), "M")
    num = data.draw(st.integers(0, size), "num")
    score = st.integers(-2, 3) | st.floats(-1, 1, width=16)  # ties are frequent
    scores = data.draw(st.lists(score, min_size=size, max_size=size), "scores")
    classes = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size), "classes")
    found = evenly(jnp.array(scores, jnp.float32), jnp.array(classes), num)
    assert found.tolist() == plain(scores, classes, num)


@pytest.mark.parametrize(
    ("scores", "classes", "num", "expected"),
    [
        ([1, 9, 8, 7, 2, 3], [0, 1, 1, 1, 0, 2], 4, [1, 5, 4, 2]),
        ([1, 9, 8, 7, 2, 3], [0, 1, 1, 1, 0, 2], 2, [1, 5]),  # more classes than places
        ([1, 9, 8, 7, 2, 3], [0, 1, 1, 1, 0, 2], 6, [1, 5, 4, 2, 0, 3]),  # all of them
        ([1, 9, 8, 7], [3, 3, 3, 3], 3, [1, 2, 3]),  # one class alone
        ([1, 9, 8, 7], [0, 5, 5, 5], 3, [1, 0, 2]),  # a class that cannot fill its share
        ([2, 2, 2, 2], [1, 1, 0, 0], 3, [0, 2, 1]),  # all alike
    ],
)
def test_choices_by_hand(scores, classes, num, expected):
    found = evenly(jnp.array(scores, jnp.float32), jnp.array(classes), num)
    assert found.tolist() == expected


def test_no_class_gets_more_than_its_share_as_long_as_others_can_fill_theirs():
    rng = np.random.default_rng(0)
    classes = rng.choice(5, size=200, p=[0.6, 0.2, 0.1, 0.06, 0.04])
    scores = rng.normal(size=200) + 5 * (classes == 0)  # one is both frequent and best
    found = evenly(jnp.asarray(scores), jnp.asarray(classes), 22)
    counts = np.bincount(classes[np.asarray(found)], minlength=5)
    assert (np.bincount(classes) >= 5).all()
    assert sorted(counts.tolist()) == [4, 4, 4, 5, 5]


@pytest.mark.parametrize(
    ("scores", "classes", "num"), [((4,), (3,), 2), ((4,), (4,), 5), ((4, 1), (4, 1), 2)]
)
def test_shapes_that_do_not_fit_are_refused(scores, classes, num):
    with pytest.raises(AssertionError):
        choose.evenly(jnp.zeros(scores), jnp.zeros(classes, jnp.int32), num)


def test_draws_are_in_proportion_to_the_weights_that_are_left():
    """All ordered pairs of 4, of which one weighs nothing, against their probabilities."""
    weights = jnp.array([1.0, 2.0, 0.0, 5.0])
    keys = jax.random.split(jax.random.key(5), 8000)
    pairs = jax.vmap(lambda key: choose.in_proportion(key, weights, 2))(keys).tolist()
    for first, second in itertools.permutations(range(4), 2):
        w = weights.tolist()
        expected = w[first] / 8 * w[second] / (8 - w[first])
        found = pairs.count([first, second]) / len(pairs)
        assert abs(found - expected) <= 4 * (expected / len(pairs)) ** 0.5, (first, second)


def test_what_weighs_nothing_is_drawn_when_nothing_else_is_left():
    weights = jnp.array([0.0, 1.0, 0.0, 1e-30])
    drawn = choose.in_proportion(jax.random.key(0), weights, 3).tolist()
    assert set(drawn[:2]) == {1, 3}
    assert sorted(choose.in_proportion(jax.random.key(0), weights, 4).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(("shape", "num"), [((4,), 5), ((2, 2), 1)])
def test_weights_that_do_not_fit_are_refused(shape, num):
    with pytest.raises(AssertionError):
        choose.in_proportion(jax.random.key(0), jnp.ones(shape), num)
