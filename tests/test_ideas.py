"""What goes beyond the paper, switched on: in whole rounds on tiny networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT, load_script
from test_choose import plain

from disguide_jax import models, shipped
from disguide_jax.config import ClonesConfig, DisguideConfig, ReplayConfig
from disguide_jax.core import images, learn, losses, replay, streams
from disguide_jax.errors import UserError
from disguide_jax.files import weights
from disguide_jax.methods import disguide
from disguide_jax.options import GeneratorConfig
from disguide_jax.run import extraction
from disguide_jax.run import program as parts
from disguide_jax.settings import set_value


def play(config, answer=tiny.brightness, *, replayed=0):
    """The kit, the states before and after a round, and what the victim was sent.

    So many random images are in the replay beforehand.
    """
    kit, state = tiny.build(config)
    if replayed:
        noise = jax.random.uniform(jax.random.key(1), (replayed, 32, 32, 3), minval=-1)
        noise = jnp.tanh(noise + jnp.linspace(-2, 2, replayed)[:, None, None, None])
        state = state.replace(replay=replay.insert(state.replay, noise, answer(noise)))
    sent = []

    def victim(x):
        jax.debug.callback(lambda x: sent.append(np.asarray(x)), x, ordered=True)
        return answer(x)

    after, _ = jax.jit(tiny.make_step(kit))(state, jax.tree_util.Partial(victim))
    jax.effects_barrier()
    return kit, state, after, sent


def test_of_all_candidates_those_are_sent_that_the_clones_disagree_on_most_even_over_classes():
    config = tiny.config(disguide=DisguideConfig(candidates=5, fresh_batches=2))
    kit, state, after, sent = play(config)
    first, _ = jax.random.split(streams.of_round(state, disguide.CLONES))
    drawn = images.draw_latent(first, 5 * 6, 4, 3)
    made, _ = images.generate(
        kit.networks.generator, after.generator.variables, *drawn, gray_every=8, train=False
    )
    logits, _ = kit.networks.clones.apply(state.clones.variables, made, train=False)
    probs = np.asarray(jax.nn.softmax(logits))
    classes = probs.sum(axis=0).argmax(-1)
    assert len(set(classes.tolist())) > 1
    chosen = plain(probs.std(axis=0, ddof=1).mean(-1), classes, 6)
    np.testing.assert_allclose(sent[0], made[jnp.array(chosen)], atol=1e-5)
    assert [len(batch) for batch in sent] == [6, 6], "what is not sent costs nothing"
    assert int(after.queries) == int(after.replay.size) == int(after.answered.sum()) == 12


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_replayed_images_come_in_proportion_to_the_loss_of_the_clones_that_will_learn_them(labels):
    """Each batch by the clones after the one before, in eval mode, and learnt in train mode."""
    answer = tiny.soft_brightness if labels == "soft" else tiny.brightness
    config = tiny.config(
        labels=labels,
        replay=ReplayConfig(size=16, batches=2, candidates=3),
        clones=ClonesConfig(learning_rate=0.1),
    )
    kit, state, after, (sent,) = play(config, answer, replayed=10)
    net, loss_fn, answers = kit.networks.clones, kit.answers.loss, answer(sent)
    ring = replay.insert(state.replay, sent, answers)
    clones, _ = learn.teach(state.clones, net, kit.tx.clones, loss_fn, sent, answers)
    for key in jax.random.split(streams.of_round(state, disguide.REPLAY), 2):
        logits, _ = net.apply(clones.variables, ring.images, train=False)
        weights = loss_fn(logits, ring.answers).mean(axis=0)

        def weigh(images, _, weights=weights):
            same = (images[:, None] == ring.images[None]).all(axis=(2, 3, 4))
            return (same * weights[None]).sum(axis=1)

        batch = replay.sample_by(ring, key, 6, 3, weigh)
        clones, _ = learn.teach(clones, net, kit.tx.clones, loss_fn, *batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        after.clones.variables,
        clones.variables,
    )
    assert int(after.queries) == 6


@pytest.mark.parametrize("train", [True, False])
def test_each_of_several_generators_makes_its_own_part_of_a_batch(train):
    """By itself: with its own weights, and in train mode with statistics of its part alone."""
    one = models.make_generator(width=2, latent_dim=4, size=32, channels=1)
    net = models.share(one, 3)
    stacked = net.init(jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (12, 4))
    found, stats = net.apply(stacked, z, train=train)
    for i in range(3):
        single = jax.tree.map(lambda x, i=i: x[i], stacked)
        expected, its_stats = one.apply(single, z[4 * i : 4 * i + 4], train=train)
        np.testing.assert_allclose(found[4 * i : 4 * i + 4], expected, rtol=1e-4, atol=1e-4)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5),
            stats,
            its_stats,
        )
    first, second, _ = np.split(np.asarray(found), 3)
    assert np.abs(first - second).max() > 0.1
    shorter, _ = net.apply(stacked, z[:10], train=False)
    whole, _ = net.apply(stacked, z, train=False)
    assert shorter.shape == (10, 32, 32, 1)
    np.testing.assert_allclose(shorter[:8], whole[:8], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shorter[8:], whole[8:10], rtol=1e-4, atol=1e-5)
    assert models.share(one, 1) is one


def test_several_generators_learn_from_one_loss_and_pay_for_one_batch():
    config = tiny.config(generator=GeneratorConfig(width=2, latent_dim=4, count=2))
    _, state, after, sent = play(config)
    assert [len(batch) for batch in sent] == [6]
    assert int(after.queries) == 6
    before, now = (s.generator.params["l1"]["kernel"] for s in (state, after))
    assert before.shape[0] == 2
    assert (before[0] != before[1]).any()
    assert (jnp.abs(now - before).max(axis=(1, 2)) > 0).all(), "both have learnt"


@pytest.mark.slow
def test_a_run_with_several_generators_leaves_each_of_them(tmp_path):
    config = load_script(ROOT / "configs/digits_hard.py").get_config("smoke")
    config.generator.count = 2
    extraction.train_and_evaluate(config, tmp_path)
    names = sorted(path.name for path in tmp_path.glob("generator*"))
    assert names == ["generator_0.safetensors", "generator_1.safetensors"]
    first, second = (weights.load_state_dict(tmp_path / name) for name in names)
    assert first["l1.0.weight"].shape == (2 * 4 * 64, 16)
    assert (first["l1.0.weight"] != second["l1.0.weight"]).any()


LOGITS = 3 * jax.random.normal(jax.random.key(2), (2, 6, tiny.NUM_CLASSES))
LABELS = jnp.array([0, 1, 2, 3, 4, 0])


def configured_loss(labels, **changes):
    """The clones' loss as a run has it, and nothing else of the run."""
    config = tiny.config(labels=labels, clones=ClonesConfig(**changes))
    return tiny.build(config)[0].answers.loss


def test_clones_learn_labels_as_smooth_as_configured():
    found = configured_loss("hard", label_smoothing=0.3)(LOGITS, LABELS)
    expected = losses.hard_cross_entropy(LOGITS, labels=LABELS, smoothing=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_labels_near_a_boundary_count_as_much_more_as_configured_for_every_clone():
    found = configured_loss("hard", boundary_weight=2.0)(LOGITS, LABELS)
    weights = losses.boundary_weights(LOGITS, weight=2.0)
    expected = losses.hard_cross_entropy(LOGITS, labels=LABELS) * weights[None]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.ptp(weights) > 0.1


PROBS = jax.nn.softmax(jax.random.normal(jax.random.key(3), (6, tiny.NUM_CLASSES)))


@pytest.mark.parametrize(
    ("soft_loss", "loss"),
    [("cross_entropy", losses.soft_cross_entropy), ("kl", losses.kl_divergence)],
)
def test_at_a_temperature_both_logits_are_divided_and_the_loss_is_t_squared_as_large(
    soft_loss, loss
):
    found = configured_loss("soft", soft_loss=soft_loss, temperature=3.0)(LOGITS, PROBS)
    warm = jax.nn.softmax(jnp.log(PROBS) / 3)
    expected = 9 * loss(LOGITS / 3, probs=warm[None])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_clones_learn_as_many_top_classes_as_configured():
    found = configured_loss("soft", top_classes=2)(LOGITS, PROBS)
    expected = losses.top_l1(LOGITS, targets=jnp.log(PROBS)[None], num=2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    floored = configured_loss("soft", top_classes=4, prob_floor=0.09)(LOGITS, PROBS)
    expected = losses.top_l1(LOGITS, targets=jnp.log(jnp.maximum(PROBS, 0.09))[None], num=4)
    np.testing.assert_allclose(floored, expected, rtol=1e-4, atol=1e-5)


def test_more_top_classes_than_there_are_are_refused():
    with pytest.raises(UserError, match="top_classes is 6; digits has 5 classes"):
        configured_loss("soft", top_classes=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": "soft", "clones.temperature": 2.0},
            "config.clones.temperature is 2.0; learning from soft labels by l1 makes no use of "
            "it: leave it at its default, 1.0",
        ),
        (
            {"labels": "soft", "as_in_text": True, "clones.top_classes": 2},
            "config.clones.top_classes is 2; learning from soft labels by cross_entropy makes no "
            "use of it: leave it at its default, 0",
        ),
        (
            {"clones.temperature": 2.0},
            "config.clones.temperature is 2.0; learning from hard labels makes no use of it: "
            "leave it at its default, 1.0",
        ),
        (
            {"labels": "soft", "clones.label_smoothing": 0.1},
            "config.clones.label_smoothing is 0.1; learning from soft labels by l1 makes no use "
            "of it: leave it at its default, 0.0",
        ),
        (
            {"labels": "soft", "clones.soft_loss": "kl", "clones.boundary_weight": 1.0},
            "config.clones.boundary_weight is 1.0; learning from soft labels by kl makes no use "
            "of it: leave it at its default, 0.0",
        ),
        (
            {"method": "maze", "labels": "soft", "replay.candidates": 2},
            "config.replay.candidates is 2; maze makes no use of it: leave it at its default, 1",
        ),
        (
            {"method": "dual_students", "replay.size": 1_000_000, "disguide.candidates": 2},
            "config.disguide.candidates is 2; dual_students makes no use of it: leave it at its "
            "default, 1",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(changes, message):
    config = shipped.load("digits_hard")
    for key, value in changes.items():
        set_value(config, key, value)
    with pytest.raises(UserError) as error:
        parts.resolve(config)
    assert str(error.value) == message
