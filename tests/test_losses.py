import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disguide_jax.core import losses

rng = np.random.default_rng(0)


def random_probs(*shape: int) -> np.ndarray:
    logits = rng.normal(size=shape)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_disagreement_of_two_clones_is_their_distance_over_root_two():
    probs = jnp.array([[[0.9, 0.1], [0.5, 0.5]], [[0.3, 0.7], [0.5, 0.5]]])
    expected = [0.6 / np.sqrt(2), 0.0]
    np.testing.assert_allclose(losses.disagreement(probs), expected, rtol=1e-6)


def test_disagreement_is_the_unbiased_deviation_over_clones_not_over_the_batch():
    probs = random_probs(3, 5, 4)
    expected = probs.std(axis=0, ddof=1).mean(-1)
    np.testing.assert_allclose(losses.disagreement(jnp.asarray(probs)), expected, rtol=1e-5)


def test_disagreement_of_a_single_clone_is_refused_instead_of_nan():
    with pytest.raises(AssertionError):
        losses.disagreement(jnp.full((1, 3, 4), 0.25))


def test_disagreement_of_equal_clones_has_gradient_zero_not_nan():
    probs = jnp.stack([jnp.full((3, 4), 0.25)] * 2)
    grads = jax.grad(lambda p: losses.disagreement(p).mean())(probs)
    np.testing.assert_array_equal(grads, jnp.zeros_like(probs))


def test_diversity_is_minus_log_k_when_classes_are_alike_and_zero_for_one_class():
    even = jnp.eye(4)[None].repeat(2, axis=0)  # every image sure, classes balanced
    single = jnp.zeros((2, 4, 4)).at[..., 0].set(1.0)
    np.testing.assert_allclose(losses.diversity(even), -np.log(4), rtol=1e-4)
    np.testing.assert_allclose(losses.diversity(single), 0, atol=1e-4)


def test_generator_loss_rewards_disagreement_and_diversity():
    agree = jnp.zeros((2, 4, 3)).at[..., 0].set(5.0)
    differ = agree.at[1].set(jnp.zeros((4, 3)).at[:, 1].set(5.0))
    low, _ = losses.generator_loss(agree, diversity_weight=0.2)
    high, terms = losses.generator_loss(differ, diversity_weight=0.2)
    assert high < low
    expected = -terms["disagreement"] + 0.2 * terms["diversity_loss"]
    np.testing.assert_allclose(high, expected, rtol=1e-6)


def test_centred_log_probs_are_the_logits_up_to_their_mean():
    logits = rng.normal(size=(5, 4)).astype(np.float32) * 10
    found = losses.centred_log_probs(jax.nn.softmax(logits))
    np.testing.assert_allclose(found, logits - logits.mean(-1, keepdims=True), atol=1e-4)


def test_centred_log_probs_of_a_rounding_victim_are_finite_and_use_its_floor():
    probs = jnp.array([[1.0, 0.0, 0.0]])
    assert np.isfinite(losses.centred_log_probs(probs)).all()
    found = losses.centred_log_probs(probs, floor=0.005)
    expected = np.log([1.0, 0.005, 0.005])
    np.testing.assert_allclose(found[0], expected - expected.mean(), rtol=1e-6)


@pytest.mark.parametrize("name", ["soft_cross_entropy", "kl_divergence"])
def test_soft_losses_equal_the_definition_and_kl_is_zero_at_the_target(name):
    logits, probs = rng.normal(size=(2, 5, 4)), random_probs(5, 4)
    log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(probs * log_q).sum(-1)
    if name == "kl_divergence":
        expected = (probs * (np.log(probs) - log_q)).sum(-1)
        at_target = losses.kl_divergence(jnp.log(probs), probs=jnp.asarray(probs))
        np.testing.assert_allclose(at_target, 0, atol=1e-6)
    targets = jnp.asarray(np.broadcast_to(probs, logits.shape))
    found = getattr(losses, name)(jnp.asarray(logits), probs=targets)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_kl_divergence_allows_probabilities_of_zero():
    value, grads = jax.value_and_grad(
        lambda logits: losses.kl_divergence(logits, probs=jnp.array([1.0, 0.0])).sum()
    )(jnp.array([1.0, 2.0]))
    assert np.isfinite(value)
    assert np.isfinite(grads).all()


def test_l1_is_the_mean_over_classes_for_every_clone_and_image():
    logits, targets = jnp.arange(12.0).reshape(2, 3, 2), jnp.zeros((2, 3, 2))
    np.testing.assert_allclose(
        losses.l1(logits, targets=targets), [[0.5, 2.5, 4.5], [6.5, 8.5, 10.5]]
    )


def test_hard_cross_entropy_gives_all_clones_the_same_labels():
    logits, labels = jnp.asarray(rng.normal(size=(2, 5, 4))), jnp.array([0, 1, 2, 3, 1])
    found = losses.hard_cross_entropy(logits, labels=labels)
    expected = -np.asarray(jax.nn.log_softmax(logits))[:, np.arange(5), labels]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_l1_of_the_top_classes_is_shift_free_and_only_an_upper_bound_for_the_others():
    """By hand: top classes 0 and 2, whose errors 1 and 3 are -1 and 1 about their mean 2."""
    targets = jnp.array([[4.0, -9.0, 1.0, 0.0]])
    logits = jnp.array([[[5.0, 2.0, 4.0, 3.5]], [[4.0, 1.5, 1.0, -3.0]]])
    expected = [[(1 + 0 + 1 + 0.5) / 4], [(0 + 0.5 + 0 + 0) / 4]]
    found = losses.top_l1(logits, targets=targets[None], num=2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    shifted = losses.top_l1(logits + 7, targets=targets[None] - 3, num=2)
    np.testing.assert_allclose(shifted, expected, rtol=1e-5)


def test_l1_of_all_classes_as_top_classes_is_l1_of_centred_logits():
    logits, targets = rng.normal(size=(2, 5, 4)), rng.normal(size=(1, 5, 4))
    centred = [jnp.asarray(x - x.mean(-1, keepdims=True)) for x in (logits, targets)]
    expected = np.abs(centred[0] - centred[1]).mean(-1)
    found = losses.top_l1(jnp.asarray(logits), targets=jnp.asarray(targets), num=4)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_top_classes_are_as_many_as_asked_for_among_equal_ones_too():
    """Of a victim that says nothing of most classes: the first two, by hand."""
    logits = jnp.array([[[0.0, 0.0, 0.0, 8.0]]])
    found = losses.top_l1(logits, targets=jnp.zeros((1, 1, 4)), num=2)
    np.testing.assert_allclose(found, [[8 / 4]], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0, 4.0])
def test_probabilities_at_a_temperature_are_those_of_divided_logits(temperature):
    logits = rng.normal(size=(5, 4)).astype(np.float32)
    found = losses.at_temperature(jax.nn.softmax(logits), temperature)
    np.testing.assert_allclose(found, jax.nn.softmax(logits / temperature), atol=1e-5)
    certain = losses.at_temperature(jnp.array([0.0, 1.0, 0.0]), temperature)
    np.testing.assert_array_equal(certain, [0, 1, 0])


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_smoothed_labels_give_their_share_to_all_classes_alike(smoothing):
    logits, labels = rng.normal(size=(2, 5, 4)), np.array([0, 1, 2, 3, 1])
    targets = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = losses.hard_cross_entropy(
        jnp.asarray(logits), labels=jnp.asarray(labels), smoothing=smoothing
    )
    np.testing.assert_allclose(found, -(targets * log_q).sum(-1), rtol=1e-5)


def test_the_weight_at_a_boundary_is_by_the_margin_of_the_mean_vote_and_one_on_average():
    """By hand: margins 0.5 and 0.05 of mean votes; each clone alone would be surer."""
    probs = jnp.array([[[0.6, 0.3, 0.1], [0.7, 0.2, 0.1]], [[0.8, 0.1, 0.1], [0.1, 0.5, 0.4]]])
    raw = np.array([1 + 4 * (1 - 0.5), 1 + 4 * (1 - 0.05)])
    found = losses.boundary_weights(jnp.log(probs), weight=4.0)
    np.testing.assert_allclose(found, raw / raw.mean(), rtol=1e-5)
    grads = jax.grad(lambda x: losses.boundary_weights(x, weight=4.0)[0])(jnp.log(probs))
    np.testing.assert_array_equal(grads, jnp.zeros_like(grads))


LOGITS, LABELS = jnp.zeros((2, 5, 4)), jnp.zeros(5, jnp.int32)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: losses.logit_distance(LOGITS[0]),
        lambda: losses.logit_distance(jnp.zeros((3, 5, 4))),
        lambda: losses.diversity(LOGITS[0]),
        lambda: losses.class_balance(LOGITS[0]),
        lambda: losses.generator_loss(LOGITS[0], diversity_weight=0.2),
        lambda: losses.l1(LOGITS, targets=LOGITS[:, :1]),
        lambda: losses.top_l1(LOGITS, targets=LOGITS[:, :1], num=2),
        lambda: losses.top_l1(LOGITS, targets=LOGITS, num=5),
        lambda: losses.soft_cross_entropy(LOGITS, probs=LOGITS[..., :1]),
        lambda: losses.kl_divergence(LOGITS, probs=LOGITS[:, 0]),
        lambda: losses.hard_cross_entropy(LOGITS, labels=LABELS[:1]),
        lambda: losses.hard_cross_entropy(LOGITS, labels=LABELS[0]),
        lambda: losses.boundary_weights(LOGITS[0], weight=1.0),
        lambda: losses.boundary_weights(LOGITS[..., :1], weight=1.0),
    ],
)
def test_shapes_that_would_be_broadcast_are_refused(loss):
    with pytest.raises(AssertionError):
        loss()
