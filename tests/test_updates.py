"""The parts of a round on networks of one layer, against NumPy and PyTorch's rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from disguide_jax.config import ClonesConfig, ReplayConfig
from disguide_jax.core import images as images_lib
from disguide_jax.core import learn, pixels
from disguide_jax.methods import disguide
from disguide_jax.options import GeneratorConfig


def test_gray_images_have_one_channel_in_place_of_all_and_the_rest_is_untouched():
    images = jax.random.normal(jax.random.key(0), (10, 4, 4, 3))
    gray = images_lib.to_gray(images, 2, every=8)
    for i in range(10):
        expected = images[i] if i % 8 else jnp.broadcast_to(images[i, :, :, 2:], (4, 4, 3))
        np.testing.assert_array_equal(gray[i], expected)


def test_gradient_of_gray_images_flows_through_the_kept_channel_only():
    images = jax.random.normal(jax.random.key(0), (2, 1, 1, 3))
    grads = jax.grad(lambda x: (images_lib.to_gray(x, 1, every=8) * 3).sum())(images)
    np.testing.assert_array_equal(grads[:, 0, 0], [[0, 3, 0], [3, 3, 3]])


@pytest.mark.parametrize(("every", "channels"), [(0, 3), (8, 1)])
def test_no_image_turns_gray_where_none_should_or_can(every, channels):
    images = jax.random.normal(jax.random.key(0), (10, 4, 4, channels))
    np.testing.assert_array_equal(images_lib.to_gray(images, 0, every=every), images)


def played(config, answer=tiny.brightness):
    """A state after one round, and the images that the victim was really sent."""
    kit, state = tiny.build(config)
    seen = []

    def victim(x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return answer(x)

    state, _ = jax.jit(tiny.make_step(kit))(state, jax.tree_util.Partial(victim))
    jax.effects_barrier()
    return state, seen


def test_an_exchange_counts_and_stores_what_the_victim_was_shown():
    state, seen = played(tiny.config())
    assert len(seen) == 1
    np.testing.assert_array_equal(state.replay.images[:6], seen[0])
    np.testing.assert_array_equal(state.replay.answers[:6], tiny.brightness(seen[0]))
    assert int(state.queries) == 6


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16"])
def test_a_narrow_replay_stores_exactly_what_the_victim_was_shown(dtype):
    state, seen = played(tiny.config(replay=ReplayConfig(size=16, batches=2, dtype=dtype)))
    _, shown = played(tiny.config())
    np.testing.assert_array_equal(pixels.decode(state.replay.images[:6]), seen[0])
    step = {"uint8": 0.5 / 127.5, "bfloat16": 2**-8}[dtype]
    assert 0 < np.abs(seen[0] - shown[0]).max() <= step + 1e-6
    if dtype == "uint8":
        levels = (seen[0] + 1) * 127.5
        np.testing.assert_allclose(levels, levels.round(), atol=1e-4)


def test_clones_train_apart_each_as_if_alone():
    """Stacked SGD equals one network at a time, with PyTorch's decay and momentum."""
    config = tiny.config()
    kit, state = tiny.build(config)
    images = jax.random.normal(jax.random.key(1), (6, 32, 32, 3))
    labels = jnp.array([0, 1, 2, 3, 4, 0])
    net, tx, loss_fn = kit.networks.clones, kit.tx.clones, kit.answers.loss
    update = jax.jit(lambda clones: learn.teach(clones, net, tx, loss_fn, images, labels))
    after = state.clones
    for _ in range(2):
        after, metrics = update(after)

    one = tiny.classifier()
    last_losses = []
    for i in range(2):
        variables = jax.tree.map(lambda x, i=i: x[i], state.clones.variables)

        def loss(params, variables=variables):
            logits, _ = one.apply(variables._replace(params=params), images, train=True)
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
            after.params,
            params,
        )
    np.testing.assert_allclose(metrics["clones/loss"], np.mean(last_losses), rtol=1e-5)


def make_update(kit, state):
    """A compiled update of the generator, always with the same latent vectors."""
    drawn = images_lib.draw_latent(jax.random.key(3), 6, 4, 3)
    clones = state.clones.variables
    return drawn, jax.jit(lambda g: disguide.update_generator(kit, g, clones, *drawn))


def test_generator_update_runs_clones_in_eval_mode_and_changes_all_of_the_generator():
    kit, state = tiny.build(tiny.config())
    drawn, update = make_update(kit, state)
    after, metrics = update(state.generator)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), after.variables, state.generator.variables
    )
    assert all(jax.tree.leaves(moved))

    @jax.jit
    def logits_before(s):
        made, _ = images_lib.generate(
            kit.networks.generator, s.generator.variables, *drawn, gray_every=8, train=True
        )
        return kit.networks.clones.apply(s.clones.variables, made, train=False)[0]

    logits = logits_before(state)
    spread = np.std(jax.nn.softmax(logits), axis=0, ddof=1).mean()
    np.testing.assert_allclose(metrics["gen/disagreement"], spread, rtol=1e-4)


def test_generator_updates_raise_the_joint_objective():
    config = tiny.config(generator=GeneratorConfig(width=2, latent_dim=4, learning_rate=1e-2))
    kit, state = tiny.build(config)
    _, update = make_update(kit, state)
    generator, losses = state.generator, []
    for _ in range(10):
        generator, metrics = update(generator)
        losses.append(float(metrics["gen/loss"]))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("loss", ["l1", "cross_entropy", "kl"])
def test_soft_losses_lead_a_clone_to_the_victims_probabilities(loss):
    config = tiny.config(
        labels="soft",
        clones=ClonesConfig(soft_loss=loss, learning_rate=0.1),
    )
    kit, state = tiny.build(config)
    probs = jnp.tile(jnp.array([0.5, 0.3, 0.1, 0.05, 0.05]), (6, 1))
    images = jax.random.normal(jax.random.key(1), (6, 32, 32, 3))
    net, tx, loss_fn = kit.networks.clones, kit.tx.clones, kit.answers.loss
    step = jax.jit(lambda clones: learn.teach(clones, net, tx, loss_fn, images, probs)[0])
    clones = state.clones
    for _ in range(150):
        clones = step(clones)
    logits, _ = net.apply(clones.variables, images, train=False)
    np.testing.assert_allclose(jax.nn.softmax(logits)[0], probs, atol=0.05)


def test_shifted_images_are_windows_of_themselves_in_a_black_frame():
    images = jnp.ones((50, 8, 8, 1))
    shifted = np.asarray(
        images_lib.augment(jax.random.key(0), images, padding=2, flip=False, black=-1)
    )
    assert set(np.unique(shifted)) == {-1, 1}
    white = (shifted == 1).any(axis=(2, 3)).sum(axis=1), (shifted == 1).any(axis=(1, 3)).sum(axis=1)
    np.testing.assert_array_equal((shifted == 1).sum(axis=(1, 2, 3)), white[0] * white[1])
    assert set(white[0]) == {6, 7, 8}
    unchanged = images_lib.augment(jax.random.key(0), images, padding=0, flip=False)
    np.testing.assert_array_equal(unchanged, images)
