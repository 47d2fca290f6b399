"""What clones reach with real images."""

import pytest

from disguide_jax.study.ceiling import ceiling
from disguide_jax.study.results import Cell


@pytest.mark.slow
@pytest.mark.parametrize("space", ["pre-transform", "post-transform"])
def test_a_few_updates_on_real_images_copy_the_digits(space):
    settings = {"query_budget": 3_200, "victim.input_space": space, "replay.size": 100}
    config = Cell("", "digits_soft", tuple(settings.items())).load(seed=0)
    scores = ceiling(config)
    assert scores.soft_vote_accuracy > 0.8
    assert scores.fidelity > 0.8


@pytest.mark.slow
def test_it_learns_from_the_victim_and_not_from_the_true_labels():
    """A random victim names classes at random: clones agree with it more than with the truth."""
    settings = {"victim.weights": "random", "query_budget": 1_600}
    scores = ceiling(Cell("", "digits_hard", tuple(settings.items())).load(seed=0))
    assert scores.fidelity > 0.6
    assert scores.soft_vote_accuracy < 0.4
