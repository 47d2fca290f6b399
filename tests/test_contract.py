"""What a victim on the host may answer."""

import numpy as np
import pytest

from disguide_jax.errors import UserError
from disguide_jax.victims.contract import Contract

SOFT, HARD = Contract(3, hard_labels=False), Contract(3, hard_labels=True)
PROBS = [[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]]


def test_probabilities_come_back_as_they_are():
    answers = SOFT.check(PROBS, 2, "x")
    assert answers.dtype == np.float32
    np.testing.assert_array_equal(answers, np.float32(PROBS))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "float32"])
def test_labels_of_any_type_become_int32(dtype):
    answers = HARD.check(np.array([2, 0], dtype), 2, "x")
    assert answers.dtype == np.int32
    np.testing.assert_array_equal(answers, [2, 0])


def test_a_column_of_labels_and_one_label_are_labels():
    np.testing.assert_array_equal(HARD.check([[2], [1]], 2, "x"), [2, 1])
    np.testing.assert_array_equal(HARD.check([1], 1, "x"), [1])


def test_of_probabilities_an_attacker_on_labels_takes_the_largest():
    np.testing.assert_array_equal(HARD.check(PROBS, 2, "x"), [0, 2])


@pytest.mark.parametrize(
    ("contract", "answers", "said"),
    [
        (SOFT, [1, 2], r"probabilities \[2, 3\].*config\.labels=hard"),
        (SOFT, [[0.5, 0.5]], r"float64 \[1, 2\].*\[2, 3\]"),
        (SOFT, PROBS[:1], r"\[1, 3\]"),
        (SOFT, [[0.5, np.nan, 0.5], PROBS[1]], "finite"),
        (SOFT, [[0.5, np.inf, 0.5], PROBS[1]], "finite"),
        (SOFT, [[-0.5, 1.0, 0.5], PROBS[1]], "at least 0"),
        (SOFT, [[3.0, -1.0, 7.0], PROBS[1]], "at least 0"),
        (SOFT, [[0.5, 0.6, 0.5], PROBS[1]], "sum to 1"),
        (SOFT, [[0.5, 0.1, 0.1], PROBS[1]], r"sum to 1.*top_k"),
        (SOFT, [["a", "b", "c"]] * 2, "numbers"),
        (SOFT, [[0.5, 0.5], [1.0]], "no array"),
        (SOFT, None, "numbers"),
        (SOFT, {"a": 1}, "numbers"),
        (SOFT, [[0.0, 0.0, 0.0], PROBS[1]], "sum to 1"),
        (HARD, [0, 3], "0 to 2"),
        (HARD, [0, -1], "0 to 2"),
        (HARD, [0.5, 1.0], "0 to 2"),
        (HARD, [0, 1, 2], "2 labels"),
        (HARD, [], "2 labels"),
        (HARD, np.zeros((2, 3, 1)), r"\[2, 3, 1\]"),
    ],
)
def test_what_breaks_it_is_refused_with_what_came(contract, answers, said):
    with pytest.raises(UserError, match=f"^the model answered.*{said}"):
        contract.check(answers, 2, "the model")


def test_what_top_k_leaves_out_is_spread_evenly():
    contract = Contract(4, hard_labels=False, top_k=2)
    answers = contract.check([[0.6, 0.0, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0]], 2, "x")
    np.testing.assert_allclose(answers, [[0.6, 0.1, 0.2, 0.1], [1, 0, 0, 0]], atol=1e-7)
    with pytest.raises(UserError, match="top_k is 2, but 3"):
        contract.check([[0.6, 0.1, 0.2, 0.0]], 1, "x")


def test_what_was_rounded_to_0_counts_as_half_a_unit():
    contract = Contract(3, hard_labels=False, decimals=1)
    answers = contract.check([[0.9, 0.1, 0.0]], 1, "x")
    np.testing.assert_allclose(answers, np.array([[0.9, 0.1, 0.05]]) / 1.05, rtol=1e-6)
    with pytest.raises(UserError, match="decimals is 1"):
        contract.check([[0.91, 0.09, 0.0]], 1, "x")


def test_rounding_may_move_the_sum_as_far_as_it_can():
    contract = Contract(10, hard_labels=False, decimals=1)
    answers = contract.check([[0.1] * 5 + [0.0] * 5, [0.2] * 5 + [0.1] * 5], 2, "x")
    np.testing.assert_allclose(answers.sum(axis=1), 1, rtol=1e-6)
    with pytest.raises(UserError, match="sum to 1"):
        contract.check([[0.4] + [0.0] * 9], 1, "x")


def test_top_k_that_is_rounded_too():
    contract = Contract(4, hard_labels=False, top_k=1, decimals=2)
    answers = contract.check([[0.97, 0.0, 0.0, 0.0]], 1, "x")
    np.testing.assert_allclose(answers, [[0.97, 0.01, 0.01, 0.01]], rtol=1e-5)
