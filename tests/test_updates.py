"""The parts of a round on networks of one layer, against NumPy and PyTorch's rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from disguide_jax import updates
from disguide_jax.config import ClonesConfig, GeneratorConfig, ReplayConfig
from disguide_jax.methods import disguide


def test_gray_images_have_one_channel_in_place_of_all_and_the_rest_is_untouched():
    images = jax.random.normal(jax.random.key(0), (10, 4, 4, 3))
    gray = updates.to_gray(images, 2, every=8)
    for i in range(10):
        expected = images[i] if i % 8 else jnp.broadcast_to(images[i, :, :, 2:], (4, 4, 3))
        np.testing.assert_array_equal(gray[i], expected)


def test_gradient_of_gray_images_flows_through_the_kept_channel_only():
    images = jax.random.normal(jax.random.key(0), (2, 1, 1, 3))
    grads = jax.grad(lambda x: (updates.to_gray(x, 1, every=8) * 3).sum())(images)
    np.testing.assert_array_equal(grads[:, 0, 0], [[0, 3, 0], [3, 3, 3]])


@pytest.mark.parametrize(("every", "channels"), [(0, 3), (8, 1)])
def test_no_image_turns_gray_where_none_should_or_can(every, channels):
    images = jax.random.normal(jax.random.key(0), (10, 4, 4, channels))
    np.testing.assert_array_equal(updates.to_gray(images, 0, every=every), images)


def test_query_counts_stores_and_shows_the_victim_what_it_returns():
    config = tiny.config()
    _, _, state = tiny.build(config)
    seen = []
    images = jax.random.uniform(jax.random.key(1), (6, 32, 32, 3), minval=-1)

    def victim(x):
        seen.append(x)
        return tiny.brightness(x)

    after, sent, answers = updates.query(state, victim, images)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], sent)
    np.testing.assert_array_equal(after.replay.images[:6], sent)
    np.testing.assert_array_equal(after.replay.answers[:6], answers)
    assert int(after.queries) == 6


def test_with_a_uint8_replay_victim_clones_and_buffer_see_the_same_rounded_images():
    config = tiny.config(replay=ReplayConfig(size=16, batches=2, dtype="uint8"))
    _, _, state = tiny.build(config)
    images = jax.random.uniform(jax.random.key(1), (6, 32, 32, 3), minval=-1)
    after, sent, _ = updates.query(state, tiny.brightness, images)
    levels = (np.asarray(sent) + 1) * 127.5
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    assert 0 < np.abs(sent - images).max() <= 0.5 / 127.5 + 1e-6
    np.testing.assert_array_equal(after.replay.images[:6], levels.round().astype(np.uint8))


def test_clones_train_apart_each_as_if_alone():
    """Stacked SGD equals one network at a time, with PyTorch's decay and momentum."""
    config = tiny.config()
    networks, tx, state = tiny.build(config)
    loss_fn = updates.make_clone_loss(config.clones, labels="hard")
    images = jax.random.normal(jax.random.key(1), (6, 32, 32, 3))
    labels = jnp.array([0, 1, 2, 3, 4, 0])
    update = jax.jit(
        lambda s: updates.update_clones(s, networks.clones, tx.clones, loss_fn, images, labels)
    )
    after = state
    for _ in range(2):
        after, metrics = update(after)

    net = tiny.classifier()
    last_losses = []
    for i in range(2):
        variables = jax.tree.map(lambda x, i=i: x[i], state.clones)

        def loss(params, variables=variables):
            logits, _ = net.apply(variables._replace(params=params), images, train=True)
            return -jax.nn.log_softmax(logits)[jnp.arange(6), labels].mean()

        params, momentum = variables.params, None
        for _ in range(2):
            value, grads = jax.jit(jax.value_and_grad(loss))(params)
            grads = jax.tree.map(lambda g, p: g + 5e-4 * p, grads, params)
            momentum = (
                jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads) if momentum else grads
            )
            params = jax.tree.map(lambda p, m: p - 0.03 * m, params, momentum)
        last_losses.append(value)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6),
            after.clones.params,
            params,
        )
    np.testing.assert_allclose(metrics["clones/loss"], np.mean(last_losses), rtol=1e-5)


def test_generator_update_runs_clones_in_eval_mode_and_changes_only_the_generator():
    config = tiny.config()
    networks, tx, state = tiny.build(config)
    z, gray = updates.draw_latent(jax.random.key(3), 6, 4, 3)
    update = functools.partial(disguide.update_generator, config=config)
    after, metrics = jax.jit(lambda s: update(s, networks, tx, z, gray))(state)
    jax.tree.map(np.testing.assert_array_equal, after.clones, state.clones)
    assert int(after.queries) == 0
    moved = jax.tree.leaves(
        jax.tree.map(lambda a, b: bool((a != b).any()), after.generator, state.generator)
    )
    assert all(moved)

    @jax.jit
    def logits_before(s):
        images, _ = updates.generate(
            networks.generator, s.generator, z, gray, gray_every=8, train=True
        )
        return networks.clones.apply(s.clones, images, train=False)[0]

    logits = logits_before(state)
    spread = np.std(jax.nn.softmax(logits), axis=0, ddof=1).mean()
    np.testing.assert_allclose(metrics["gen/disagreement"], spread, rtol=1e-4)


def test_generator_updates_raise_the_joint_objective():
    config = tiny.config(generator=GeneratorConfig(width=2, latent_dim=4, learning_rate=1e-2))
    networks, tx, state = tiny.build(config)
    z, gray = updates.draw_latent(jax.random.key(3), 6, 4, 3)
    update = jax.jit(lambda s: disguide.update_generator(s, networks, tx, z, gray, config=config))
    losses = []
    for _ in range(10):
        state, metrics = update(state)
        losses.append(float(metrics["gen/loss"]))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("loss", ["l1", "cross_entropy", "kl"])
def test_soft_losses_lead_a_clone_to_the_victims_probabilities(loss):
    config = tiny.config(
        labels="soft",
        clones=ClonesConfig(soft_loss=loss, learning_rate=0.1),
    )
    networks, tx, state = tiny.build(config)
    probs = jnp.tile(jnp.array([0.5, 0.3, 0.1, 0.05, 0.05]), (6, 1))
    images = jax.random.normal(jax.random.key(1), (6, 32, 32, 3))
    loss_fn = updates.make_clone_loss(config.clones, labels="soft")
    step = jax.jit(
        lambda s: updates.update_clones(s, networks.clones, tx.clones, loss_fn, images, probs)[0]
    )
    for _ in range(150):
        state = step(state)
    logits, _ = networks.clones.apply(state.clones, images, train=False)
    np.testing.assert_allclose(jax.nn.softmax(logits)[0], probs, atol=0.05)


def test_shifted_images_are_windows_of_themselves_in_a_black_frame():
    images = jnp.ones((50, 8, 8, 1))
    shifted = np.asarray(
        updates.augment(jax.random.key(0), images, padding=2, flip=False, black=-1)
    )
    assert set(np.unique(shifted)) == {-1, 1}
    white = (shifted == 1).any(axis=(2, 3)).sum(axis=1), (shifted == 1).any(axis=(1, 3)).sum(axis=1)
    np.testing.assert_array_equal((shifted == 1).sum(axis=(1, 2, 3)), white[0] * white[1])
    assert set(white[0]) == {6, 7, 8}
    unchanged = updates.augment(jax.random.key(0), images, padding=0, flip=False)
    np.testing.assert_array_equal(unchanged, images)
