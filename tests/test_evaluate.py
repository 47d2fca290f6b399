"""Votes, accuracies and fidelity against plain counting; victims and their input range."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import load_script

from disguide_jax import models
from disguide_jax.core import answers
from disguide_jax.errors import exit_status
from disguide_jax.run import evaluate
from disguide_jax.victims import network

rng = np.random.default_rng(0)


def test_soft_vote_sums_probabilities_not_logits_or_labels():
    logits = jnp.log(jnp.array([[[0.6, 0.3, 0.1]], [[0.05, 0.45, 0.5]]]))
    assert answers.soft_vote(logits).tolist() == [1]  # clone 0 says 0, clone 1 says 2


def test_hard_vote_is_the_majority_and_the_soft_vote_breaks_ties():
    probs = [[[0.9, 0.1, 0.0]], [[0.4, 0.6, 0.0]], [[0.4, 0.6, 0.0]]]
    logits = jnp.log(jnp.array(probs) + 1e-6)
    assert answers.hard_vote(logits).tolist() == [1]
    assert answers.soft_vote(logits).tolist() == [0]
    assert answers.hard_vote(logits[:2]).tolist() == [0]


@pytest.mark.parametrize("batch_size", [4, 7, 14, 500])
def test_scores_are_those_of_plain_counting_whatever_the_batches(batch_size):
    images = rng.integers(0, 256, (14, 32, 32, 3), np.uint8)
    labels = rng.integers(0, tiny.NUM_CLASSES, 14)
    net = tiny.classifier()
    clones = models.stack(net, 2)
    variables = clones.init(jax.random.key(1))
    oracle = network.make_victim(
        net, net.init(jax.random.key(2)), mean=(0.4,) * 3, std=(0.2,) * 3, hard_labels=True
    )
    named = evaluate.labels_of(oracle, images)
    test_set = evaluate.make_test_set(images, labels, named, batch_size=batch_size)
    scores = evaluate.make_evaluate(clones, oracle)(variables, test_set)
    without = evaluate.make_test_set(images, None, named, batch_size=batch_size)
    unlabelled = evaluate.make_evaluate(clones, oracle)(variables, without)

    floats = jnp.asarray(images, jnp.float32) / 127.5 - 1
    logits, _ = clones.apply(variables, floats, train=False)
    said, vote = oracle(floats), answers.soft_vote(logits)
    np.testing.assert_allclose(scores.clone_accuracy, (logits.argmax(-1) == labels[None]).mean(-1))
    np.testing.assert_allclose(scores.soft_vote_accuracy, (vote == labels).mean(), rtol=1e-6)
    np.testing.assert_allclose(scores.fidelity, (vote == said).mean(), rtol=1e-6)
    expected = (np.asarray(said) == labels).mean()
    np.testing.assert_allclose(evaluate.victim_accuracy(test_set), expected)
    assert evaluate.num_images(test_set) == evaluate.num_images(without) == 14
    assert evaluate.victim_accuracy(without) is None
    assert unlabelled.fidelity == scores.fidelity
    assert scores.labelled
    assert not unlabelled.labelled


def test_a_victim_normalises_inside_and_shows_probabilities_or_labels_only():
    net = tiny.classifier()
    variables = net.init(jax.random.key(2))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    pixels = jnp.asarray(rng.uniform(size=(6, 32, 32, 3)), jnp.float32)
    constants = [jnp.asarray(c).reshape(1, 1, 1, 3) for c in (mean, std)]
    logits, _ = net.apply(variables, (pixels - constants[0]) / constants[1], train=False)
    soft = network.make_victim(net, variables, mean=mean, std=std, hard_labels=False)
    hard = network.make_victim(net, variables, mean=mean, std=std, hard_labels=True)
    images = 2 * pixels - 1
    np.testing.assert_allclose(soft(images), jax.nn.softmax(logits), atol=1e-5)
    np.testing.assert_array_equal(hard(images), logits.argmax(-1))
    assert hard(images).dtype == jnp.int32
    np.testing.assert_array_equal(answers.to_labels(soft(images)), hard(images))


def test_an_attacker_who_knows_the_transform_sends_and_is_tested_on_normalised_images():
    net = tiny.classifier()
    variables = net.init(jax.random.key(2))
    constants = {"mean": (0.4,) * 3, "std": (0.2,) * 3, "hard_labels": False}
    blind = network.make_victim(net, variables, **constants)
    knowing = network.make_victim(net, variables, **constants, knows_transform=True)
    images = jnp.asarray(rng.uniform(-1, 1, (6, 32, 32, 3)), jnp.float32)
    np.testing.assert_array_equal(blind.to_input_space(images), images)
    np.testing.assert_allclose(knowing(knowing.to_input_space(images)), blind(images), atol=1e-5)
    assert not np.allclose(knowing(images), blind(images), atol=1e-3)


@pytest.mark.slow
def test_a_real_pytorch_victim_predicts_what_it_predicted_in_pytorch(
    shared, tmp_path, monkeypatch, capsys
):
    unpack = load_script(shared / "data/unpack.py")
    with np.load(shared / "data/cifar10-test.npz") as part:
        images, labels, classes = unpack.images(part), part["labels"], part["classes"]
    np.savez(tmp_path / "cifar10.npz", test_images=images, test_labels=labels, classes=classes)
    script = load_script("evaluate_victim")
    weights = shared / "victims/cifar10-resnet34_w16.pt"
    argv = ["evaluate_victim.py", "--weights", str(weights), "--dataset", "cifar10"]
    argv += ["--data_dir", str(tmp_path), "--predictions", str(tmp_path / "out.npy")]
    monkeypatch.setattr(sys, "argv", argv)
    assert exit_status(script.main) == 0
    assert "accuracy 0.867" in capsys.readouterr().out
    with np.load(weights.with_suffix(".predictions.npz")) as recorded:
        same = np.load(tmp_path / "out.npy") == recorded["predictions"]
    assert same.sum() >= 9_995


def test_the_script_answers_a_mistake_with_one_message(monkeypatch, capsys):
    script = load_script("evaluate_victim")
    argv = ["evaluate_victim.py", "--weights", "absent.pt", "--dataset", "digits"]
    monkeypatch.setattr(sys, "argv", argv)
    assert exit_status(script.main) == 2
    assert "absent.pt" in capsys.readouterr().err
