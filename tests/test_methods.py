"""What every method owes: its queries counted, its budget kept, its state all that it needs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from disguide_jax.config import ClonesConfig, DfmsConfig, ZerothOrderConfig
from disguide_jax.core import losses
from disguide_jax.core import stages as stages_lib
from disguide_jax.core.answers import soft_vote
from disguide_jax.errors import UserError
from disguide_jax.files import checkpoint
from disguide_jax.methods.dfms import choose, proxy
from disguide_jax.models import layers
from disguide_jax.models.dcgan import DcganDiscriminator, DcganGenerator
from disguide_jax.options import GeneratorConfig
from disguide_jax.run import program as parts

IN_A_ROUND = {  # METHODS: batches of 6, 3 clone steps, 2 directions, as images
    "disguide": 6,
    "dual_students": 6 * 3,
    "dfme": 6 * ((2 + 1) + 3),
    "maze": 6 * ((1 + 2) + (3 - 1)),
}
DFMS = DfmsConfig(
    proxy_images=13,
    validation_images=14,
    offline_images=12,
    gan_epochs=1,
    offline_epochs=2,
    diversity_epochs=1,
    choose_every_rounds=2,
)


def config_of(method, **changes):
    settings = {
        "method": method,
        "labels": "hard" if method == "dfms" else "soft",
        "generator": GeneratorConfig(width=2, latent_dim=4, gray_every=0),
        "clones": ClonesConfig(steps=3, learning_rate=0.01),
        "zeroth_order": ZerothOrderConfig(directions=2),
        "dfms": dataclasses.replace(DFMS),
        "query_budget": 100,
    }
    return tiny.config(**settings | changes)


class Recorder:
    """A victim that keeps what it is really sent while the compiled program runs."""

    def __init__(self, answer):
        self.answer, self.sent = answer, []

    def __call__(self, images):
        jax.debug.callback(lambda x: self.sent.append(np.asarray(x)), images, ordered=True)
        return self.answer(images)

    def take(self):
        jax.effects_barrier()
        sent, self.sent = self.sent, []
        return sent


def play_all(config, victim, after_round=lambda state: state):
    """Plays every round of every stage; returns the last kit and the state."""
    kits, stages = tiny.make_kits(config), parts.stages_of(config)
    kit, state = tiny.build(config)
    plays = {stage.name: jax.jit(parts.make_play(kits[stage.name], stage)) for stage in stages}
    for round_ in range(stages_lib.total(stages)):
        stage, _ = stages_lib.stage_at(stages, round_)
        state, metrics = plays[stage.name](state, jax.tree_util.Partial(victim))
        assert all(np.isfinite(m) for m in metrics.values())
        state = after_round(state)
    return kit, state


@pytest.mark.parametrize(
    ("method", "validate_last"),
    [
        *((method, False) for method in IN_A_ROUND),
        pytest.param("dfms", False, marks=pytest.mark.slow),
        pytest.param("dfms", True, marks=pytest.mark.slow),
    ],
)
def test_every_method_sends_what_it_states_round_by_round_and_counts_it(method, validate_last):
    config = config_of(method)
    config.dfms.validate_last = validate_last
    victim = Recorder(tiny.brightness if config.labels == "hard" else tiny.smooth_brightness)
    stages, sent = parts.stages_of(config), []

    def compare(state):
        sent.append(sum(len(images) for images in victim.take()))
        stage, _ = stages_lib.stage_at(stages, int(state.round) - 1)
        assert sent[-1] == stage.queries
        assert int(state.queries) == sum(sent) == stages_lib.queries_after(stages, int(state.round))
        return state

    play_all(config, victim, compare)
    assert sum(sent) <= config.query_budget < sum(sent) + max(sent)
    if method in IN_A_ROUND:
        assert sent == [IN_A_ROUND[method]] * (100 // IN_A_ROUND[method])
    else:  # gan, validate, label, offline, diversity, validate, label, offline, alternate
        before = [0] * 2 + [6] * 2 + [12] * 2 + [0] * 4
        last = [6] * ((100 - 2 * 36) // 6)
        # With another validation there are two rounds less before it, and the choice after it.
        assert sent == before * 2 + last + [0] * validate_last


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from([*IN_A_ROUND, "dfms"]), st.booleans(), st.integers(1, 500), st.integers(2, 40)
)
def test_no_budget_is_exceeded_and_one_that_is_too_small_is_refused(
    method, validate_last, budget, batch_size
):
    config = config_of(method, query_budget=budget, batch_size=batch_size)
    config.dfms.validate_last = validate_last
    config.dfms.proxy_images = config.dfms.validation_images = 50
    config.dfms.offline_images = 40
    try:
        stages = parts.stages_of(config)
    except UserError:
        with pytest.raises(UserError, match=f"query_budget is {budget}; .*at least"):
            parts.stages_of(config)
    else:
        spent = stages_lib.queries_after(stages, stages_lib.total(stages))
        what_remains = next(stage for stage in reversed(stages) if stage.clone_updates)
        assert spent <= budget < spent + what_remains.queries


@pytest.mark.slow
def test_dfms_continues_exactly_from_a_checkpoint_after_any_round(tmp_path):
    """Inside stages and between them, whether or not they send anything."""
    config = config_of("dfms")
    config.dfms.validate_last = True
    _, expected = play_all(config, tiny.brightness)
    with checkpoint.Checkpoints(tmp_path) as saved:
        template = jax.eval_shape(lambda: tiny.build(config)[1])
        assert saved.restore(template) is None

    def through_the_disk(state):
        with checkpoint.Checkpoints(tmp_path) as saved:
            saved.restore(template)
            saved.save(state, {})
        with checkpoint.Checkpoints(tmp_path) as saved:
            return saved.restore(template)[0]

    _, found = play_all(config, tiny.brightness, through_the_disk)

    def compare(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)

    jax.tree.map(compare, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("validate_last", [False, True])
def test_dfms_clones_are_those_that_agree_most_with_the_paid_answers(validate_last):
    config = config_of("dfms")
    config.dfms.validate_last = validate_last
    victim, agreements = Recorder(tiny.brightness), {}
    paid = []  # images of the validation stage that came last

    def watch(state):
        nonlocal paid
        stage, first = stages_lib.stage_at(parts.stages_of(config), int(state.round) - 1)
        sent = victim.take()
        if stage.name == "validate":
            paid = sent if int(state.round) - 1 == first else paid + sent
        agreements[int(state.round)] = (stage.name, state, list(paid))
        return state

    kit, _ = play_all(config, victim, watch)
    ends = np.cumsum([stage.num_rounds for stage in parts.stages_of(config)])
    for end in (ends[3], ends[7], ends[8], *ends[10:]):
        name, state, images = agreements[int(end)]
        images = jnp.concatenate(images)
        np.testing.assert_array_equal(state.extra.validation, tiny.brightness(images))
        logits, _ = kit.networks.clones.apply(state.extra.best, images, train=False)
        agreement = (soft_vote(logits) == state.extra.validation).mean()
        np.testing.assert_allclose(state.extra.agreement, agreement, atol=1e-6)
        if name in ("alternate", "choose"):  # no average is better than the choice
            for i in range(len(choose.DECAYS)):
                one = jax.tree.map(lambda x, i=i: x[i], state.extra.averages)
                logits, _ = kit.networks.clones.apply(one, images, train=False)
                assert (soft_vote(logits) == state.extra.validation).mean() <= agreement
        if name == "choose":  # nor is what had been chosen before
            chosen = agreements[int(ends[8])][1].extra.best
            logits, _ = kit.networks.clones.apply(chosen, images, train=False)
            assert (soft_vote(logits) == state.extra.validation).mean() <= agreement


@pytest.mark.slow
def test_dfms_labels_stay_with_the_images_that_they_were_given_for():
    """A victim that tells proxy images, which have no colour, from generated ones."""

    def coloured(images):
        return (jnp.abs(images[..., 0] - images[..., 1]).max(axis=(1, 2)) > 1e-3).astype(jnp.int32)

    _, state = play_all(config_of("dfms"), coloured)
    np.testing.assert_array_equal(state.extra.labelled[:, 0], 0)
    np.testing.assert_array_equal(state.extra.labelled[:, 1], 1)


def test_dfms_averages_are_exponential():
    averages, new = jnp.arange(14.0).reshape(7, 2), jnp.array([10.0, 20.0])
    expected = [
        [d * a + (1 - d) * b for a, b in zip(row, new, strict=True)]
        for d, row in zip(choose.DECAYS, averages, strict=True)
    ]
    np.testing.assert_allclose(choose.average(averages, new), expected, rtol=1e-6)
    assert choose.DECAYS[0] == 0  # the student itself is a candidate


def test_maze_stores_the_last_fresh_batch_and_no_other():
    config = config_of("maze")
    victim = Recorder(tiny.smooth_brightness)
    kit, state = tiny.build(config)
    step = tiny.make_step(kit)
    state, _ = jax.jit(step)(state, jax.tree_util.Partial(victim))
    sent = victim.take()
    assert [len(images) for images in sent] == [18, 6, 6]
    assert int(state.replay.size) == 6
    np.testing.assert_array_equal(state.replay.images[:6], sent[-1])
    np.testing.assert_allclose(
        state.replay.answers[:6], tiny.smooth_brightness(sent[-1]), rtol=1e-5
    )


@pytest.mark.parametrize("method", ["dual_students", "dfme", "dfms"])
def test_methods_without_replay_keep_none(method):
    _, state = tiny.build(config_of(method))
    assert len(state.replay.images) == 1


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("dual_students", {"num_clones": 3}, "num_clones is 3; dual_students needs exactly 2"),
        ("dfms", {"query_budget": 77}, "query_budget is 77; dfms pays 72 .* at least 78"),
        ("dfms", {"batch_size": 13}, r"dfms.offline_images is 12; .*batch_size is 13"),
        ("dfms", {"generator": GeneratorConfig(gray_every=8)}, "gray_every is 8"),
        ("dfms", {"dfms": DfmsConfig(proxy_images=20, offline_images=30)}, "only 20 proxy images"),
    ],
)
def test_what_a_method_cannot_do_is_refused(method, changes, message):
    with pytest.raises(UserError, match=message):
        parts.stages_of(config_of(method, **changes))


def test_logit_distance_and_class_balance_are_their_definitions():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 3)).astype(np.float32)
    expected = np.abs(logits[0] - logits[1]).mean(-1)
    np.testing.assert_allclose(losses.logit_distance(jnp.asarray(logits)), expected, rtol=1e-5)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    a = probs.reshape(8, 3).mean(axis=0)
    expected = (a * np.log(a + 1e-5)).sum()
    np.testing.assert_allclose(losses.class_balance(jnp.asarray(probs)), expected, rtol=1e-5)


def test_proxy_images_depend_on_the_key_only_and_hold_shapes():
    make = jax.jit(functools.partial(proxy.make_proxy, num_images=20, size=32))
    images = np.asarray(make(jax.random.key(0)))
    assert images.shape == (20, 32, 32)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, make(jax.random.key(0)))
    assert (images != make(jax.random.key(1))).any()
    assert len({image.tobytes() for image in images}) == 20
    backgrounds = [np.bincount(image.ravel()).argmax() for image in images]
    assert len(set(backgrounds)) > 10, "backgrounds of many grays"
    shares = [(image != b).mean() for image, b in zip(images, backgrounds, strict=True)]
    assert 0.2 < np.mean(shares) < 0.7, "50 shapes of 5 to 10 pixels on a canvas of 100"


@pytest.mark.parametrize(
    ("kind", "area"), [(proxy.TRIANGLE, 32), (proxy.RECTANGLE, 64), (proxy.CIRCLE, 50.3)]
)
def test_a_shape_covers_its_area(kind, area):
    mask = proxy.covered(jnp.int32(kind), jnp.array([50.0, 50.0]), jnp.array([8.0, 8.0]))
    np.testing.assert_allclose(mask.sum(), area, rtol=0.15)


def test_a_transposed_convolution_is_pytorchs():
    """By its definition on weights [in, out, h, w], which the kernel is a transposition of."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 3, 3, 4)), rng.normal(size=(4, 5, 4, 4))
    expected = np.zeros((2, 8, 8, 5))
    for i in range(3):
        for j in range(3):
            patch = np.einsum("nc,cohw->nhwo", x[:, i, j], weight)
            expected[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += patch
    expected = expected[:, 1:-1, 1:-1]  # padding 1
    init = jax.nn.initializers.zeros
    layer = layers.ConvTranspose(5, kernel=4, stride=2, padding=1, kernel_init=init, dtype=None)
    kernel = jnp.asarray(weight.transpose(2, 3, 1, 0), jnp.float32)
    maps = layers.swap_maps(jnp.asarray(x, jnp.float32))
    found = layers.swap_maps(layer.apply({"params": {"kernel": kernel}}, maps))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_dcgan_has_the_published_shapes():
    """METHODS: convolutions without biases, and a scale and a shift for each normalised map."""
    z, images = jnp.zeros((1, 100)), jnp.zeros((1, 32, 32, 3))
    generator = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64) + 64 * 3
    generator += 2 * (512 + 256 + 128 + 64)
    discriminator = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 4 * 512
    discriminator += 2 * (128 + 256 + 512)
    for module, x, out, count in (
        (DcganGenerator(width=64, size=32, channels=3), z, (1, 32, 32, 3), generator),
        (DcganDiscriminator(width=64), images, (1,), discriminator),
    ):
        init = functools.partial(module.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), x)
        shape = jax.eval_shape(functools.partial(module.apply, train=False), variables, x).shape
        assert shape == out
        leaves = jax.tree.leaves(variables["params"])
        assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == count
