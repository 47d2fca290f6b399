"""Whole rounds on tiny networks: what is counted, what is compiled, what is donated."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from disguide_jax import shipped
from disguide_jax.config import ClonesConfig, DisguideConfig, ReplayConfig, ScheduleConfig
from disguide_jax.core import backend, images, learn, replay, streams
from disguide_jax.core import stages as stages_lib
from disguide_jax.core.exchange import make_call, repeat
from disguide_jax.errors import UserError
from disguide_jax.methods import disguide
from disguide_jax.run import program as parts

VICTIM = jax.tree_util.Partial(tiny.brightness)


def tiny_step(config):
    kit, state = tiny.build(config)
    return kit, state, tiny.make_step(kit)


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def assert_close(a, b, **tolerance):
    def compare(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, **tolerance)

    jax.tree.map(compare, a, b)


@pytest.mark.parametrize("augmented", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_round_is_a_generator_update_a_query_and_b_plus_one_clone_updates_in_this_order(
    augmented,
):
    config = tiny.config()
    if augmented:
        config.replay.crop_padding, config.replay.flip = 2, True
    kit, state, step = tiny_step(config)
    found, metrics = jax.jit(step)(state, VICTIM)

    @jax.jit
    def by_hand(s):
        drawn = images.draw_latent(streams.of_round(s, disguide.GENERATOR), 6, 4, 3)
        variables = s.clones.variables
        generator, first = disguide.update_generator(kit, s.generator, variables, *drawn)
        drawn = images.draw_latent(streams.of_round(s, disguide.CLONES), 6, 4, 3)
        sent, _ = images.generate(  # eval mode: running statistics
            kit.networks.generator, generator.variables, *drawn, gray_every=8, train=False
        )
        labels = VICTIM(sent)
        ring = replay.insert(s.replay, sent, labels)
        teach = functools.partial(
            learn.teach, net=kit.networks.clones, tx=kit.tx.clones, loss_fn=kit.answers.loss
        )
        clones, second = teach(s.clones, images=sent, answers=labels)
        for key in jax.random.split(streams.of_round(s, disguide.REPLAY), 2):
            batch, labels = replay.sample(ring, key, 6)
            if augmented:
                key = jax.random.fold_in(key, disguide.AUGMENT)
                batch = images.augment(key, batch, padding=2, flip=True, black=-1)
            clones, _ = teach(clones, images=batch, answers=labels)
        counts = jnp.bincount(VICTIM(sent), length=tiny.NUM_CLASSES)
        s = s.replace(queries=s.queries + 6, answered=s.answered + counts, round=s.round + 1)
        return s.replace(generator=generator, clones=clones, replay=ring), first | second

    expected, expected_metrics = by_hand(state)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)


def test_every_image_the_victim_sees_is_counted_and_no_other():
    config = tiny.config()
    _, state, step = tiny_step(config)
    seen = []

    def victim(images):
        jax.debug.callback(lambda n: seen.append(int(n)), images.shape[0], ordered=True)
        return tiny.brightness(images)

    play = jax.jit(step)
    for _ in range(5):
        state, _ = play(state, jax.tree_util.Partial(victim))
    jax.effects_barrier()
    assert sum(seen) == int(state.queries) == 5 * disguide.stages(config)[0].queries == 30
    assert int(state.replay.head) == 30 % 16
    assert int(state.replay.size) == 16


@pytest.mark.parametrize("labels", [pytest.param("soft", marks=pytest.mark.slow), "hard"])
def test_rounds_looped_on_the_device_equal_single_calls(labels):
    config = tiny.config(labels=labels)
    victim = VICTIM
    if labels == "soft":
        victim = jax.tree_util.Partial(tiny.soft_brightness)
    _, state, step = tiny_step(config)
    looped = make_call(step, looped=True)
    single = make_call(step, looped=False)
    a, sums, played = looped(copy(state), victim, 3)
    assert int(played) == 3
    totals = {}
    for _ in range(3):
        state, metrics, one = single(state, victim, 1)
        assert int(one) == 1
        totals = {k: totals.get(k, 0) + v for k, v in metrics.items()}
    assert_close(a, state, rtol=2e-3, atol=1e-4)
    assert_close(sums, totals, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("looped", [True, False])
def test_the_step_is_traced_once_whatever_the_number_of_rounds_and_the_state_is_donated(looped):
    config = tiny.config()
    _, state, step = tiny_step(config)
    call = make_call(step, looped=looped)
    first = state
    for num_rounds in (2, 2, 1):
        state, _, _ = call(state, VICTIM, num_rounds)
    assert call._cache_size() == 1
    assert first.replay.images.is_deleted()
    assert first.clones.params["fc"]["kernel"].is_deleted()


def test_a_loop_stops_at_the_round_whose_metrics_are_not_finite():
    config = tiny.config()
    _, state, step = tiny_step(config)

    def failing_step(state, victim):
        after, metrics = step(state, victim)
        spoilt = jnp.where(after.round == 2, jnp.nan, metrics["clones/loss"])
        return after, metrics | {"clones/loss": spoilt}

    state, sums, played = make_call(failing_step, looped=True)(state, VICTIM, 5)
    assert int(played) == int(state.round) == 2
    assert int(state.queries) == 12
    assert np.isnan(sums["clones/loss"])


def test_rounds_depend_on_seed_and_round_only():
    config = tiny.config()
    _, state = tiny.build(config)
    other = tiny.build(tiny.config(seed=1))[1]
    keys = [streams.of_round(s, 0) for s in (state, state.replace(round=1), other)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


def test_clones_start_apart():
    _, state = tiny.build(tiny.config())
    kernel = state.clones.params["fc"]["kernel"]
    assert (kernel[0] != kernel[1]).all()


def convolve(x):
    return jax.lax.conv(x[None, None], jnp.ones((1, 1, 3, 3)), (1, 1), "SAME")[0, 0]


@pytest.mark.parametrize(
    ("transform", "over", "kind", "devices", "looped"),
    [
        (jnp.sin, jnp.arange(3.0), "cpu", 1, True),
        (jnp.sin, jnp.arange(3.0), "cpu", 2, False),
        (jnp.sin, jnp.arange(1.0), "cpu", 1, False),
        (convolve, jnp.arange(3.0), "cpu", 1, False),
        (jax.jit(jax.checkpoint(convolve)), jnp.arange(2.0), "cpu", 1, False),
        (convolve, jnp.arange(3.0), "gpu", 2, True),
    ],
)
def test_steps_are_repeated_in_a_loop_where_nothing_speaks_against_it(
    transform, over, kind, devices, looped, monkeypatch
):
    monkeypatch.setattr(jax, "device_count", lambda: devices)

    def step(x, each):
        x = transform(x) + each
        return x, {"sum": x.sum()}

    x = last = jnp.eye(4)
    with backend.pretended(kind):
        assert ("scan[" in str(jax.make_jaxpr(lambda x: repeat(step, x, over))(x))) == looped
        repeated = repeat(step, x, over)
    for each in over:
        last, metrics = step(last, each)
    chex.assert_trees_all_close(repeated, (last, metrics), rtol=1e-6)


def test_replayed_batches_of_networks_without_convolutions_are_a_loop():
    _, state, step = tiny_step(tiny.config(replay=ReplayConfig(size=16, batches=7)))
    assert str(jax.make_jaxpr(step)(state, VICTIM)).count("length=7") == 1


@pytest.mark.parametrize(("budget", "rounds"), [(6, 1), (11, 1), (12, 2), (60, 10), (65, 10)])
def test_a_last_batch_that_does_not_fit_the_budget_is_not_sent(budget, rounds):
    assert stages_lib.total(parts.stages_of(tiny.config(query_budget=budget))) == rounds


def test_a_budget_below_one_round_is_refused():
    with pytest.raises(UserError, match=r"query_budget is 5; it must be at least 6"):
        parts.stages_of(tiny.config(query_budget=5))


@pytest.mark.parametrize("num_clones", [0, 1])
def test_disguide_needs_two_clones(num_clones):
    with pytest.raises(UserError, match=f"num_clones is {num_clones}"):
        parts.method_of(tiny.config(num_clones=num_clones))


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"method is 'magic'.*disguide"):
        parts.method_of(tiny.config(method="magic"))


def test_more_than_two_clones_and_no_replay_batches_play_as_well():
    config = tiny.config(num_clones=3, replay=ReplayConfig(size=6, batches=0))
    _, state, step = tiny_step(config)
    state, metrics = jax.jit(step)(state, VICTIM)
    assert state.clones.params["fc"]["kernel"].shape[0] == 3
    assert "clones/replay_loss" not in metrics
    assert int(state.queries) == 6


def test_learning_rates_fall_at_the_budget_fractions_for_both_networks():
    """By what SGD and Adam really apply: the size of updates on constant gradients."""
    config = tiny.config(query_budget=60)  # 10 rounds: boundaries at rounds 4 and 8
    tx = tiny.build(config)[0].tx
    params = {"w": jnp.ones(1)}

    def relative_rates(optimizer, updates_per_round, base):
        opt_state, rates = optimizer.init(params), []
        for _ in range(10):
            for _ in range(updates_per_round):
                # Adam's update on a constant gradient is -rate; SGD's without momentum too.
                update, opt_state = optimizer.update({"w": jnp.ones(1)}, opt_state, params)
            rates.append(float(-update["w"][0]) / base)
        return rates

    expected = [1.0] * 4 + [0.3] * 4 + [0.09] * 2
    found = relative_rates(tx.generator, 1, 1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-3)

    config.clones.momentum, config.clones.weight_decay = 0.0, 0.0
    found = relative_rates(tiny.build(config)[0].tx.clones, 3, 0.03)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_average_of_the_clones_follows_them_and_is_the_result():
    config = tiny.config(clones=ClonesConfig(average_decay=0.2, learning_rate=0.1))
    _, state, step = tiny_step(config)
    play, expected = jax.jit(step), state.clones.variables
    for round_ in (1, 2, 3):
        state, _ = play(state, VICTIM)
        kept = min(0.2, round_ / (9 + round_))  # 0.1, 0.18, 0.2
        expected = jax.tree.map(
            lambda a, c, kept=kept: kept * a + (1 - kept) * c, expected, state.clones.variables
        )
    assert_close(disguide.METHOD.result(state), expected, rtol=1e-5, atol=1e-6)
    without = state.replace(average=())
    assert disguide.METHOD.result(without) == state.clones.variables


@pytest.mark.parametrize(
    ("budget", "boundaries"),
    [  # E = budget // (150 * 256) + 1 blocks, drops after int(0.4 E), int(0.8 E)
        (8_000_000, [12_450, 25_050]),
        (10_000_000, [15_600, 31_200]),
        (20_000_000, [31_200, 62_400]),
        (80_000, [150, 300]),
        (20_000, [31, 62]),  # 78 rounds, no whole block: by single rounds
        (40_000, [62, 124]),  # one block and a bit: the first drop would fall on round 0
        (256, [1]),
    ],
)
def test_the_schedule_in_blocks_is_the_authors_and_never_begins_reduced(budget, boundaries):
    found = learn.boundaries((0.4, 0.8), factor=0.3, block_rounds=150, num_rounds=budget // 256)
    assert list(found) == boundaries
    assert np.prod(list(found.values())) == pytest.approx(0.09)


def test_c10_hard_goes_by_the_authors_blocks():
    config = shipped.load("c10_hard")
    tx = parts.make_optimizers(config, parts.stages_of(config)[0])
    rates = [float(tx.clones_rate(r)) for r in (0, 12_449, 12_450, 25_049, 25_050)]
    np.testing.assert_allclose(rates, [0.03, 0.03, 0.009, 0.009, 0.0027], rtol=1e-5)
    rates = [float(tx.generator_rate(r)) for r in (0, 12_449, 12_450, 25_049, 25_050)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 3e-5, 3e-5, 9e-6], rtol=1e-5)


def test_a_cosine_ends_with_the_budget():
    config = tiny.config(schedule=ScheduleConfig(shape="cosine"))  # 10 rounds
    tx = tiny.build(config)[0].tx
    found = [float(tx.clones_rate(r)) for r in (0, 5, 9, 10)]
    expected = [0.03 * (1 + np.cos(np.pi * r / 10)) / 2 for r in (0, 5, 9, 10)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)


def test_algorithm_1_has_g_iter_generator_steps_and_d_iter_fresh_batches():
    """Each counted by the accountant, stored, and learnt from once."""
    counts = DisguideConfig(generator_steps=2, fresh_batches=3)
    config = tiny.config(query_budget=100, disguide=counts)
    _, state, step = tiny_step(config)
    seen = []

    def victim(images):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), images, ordered=True)
        return tiny.brightness(images)

    state, _ = jax.jit(step)(state, jax.tree_util.Partial(victim))
    jax.effects_barrier()
    assert [len(images) for images in seen] == [6, 6, 6]
    assert len({images.tobytes() for images in seen}) == 3, "three different batches"
    (stage,) = parts.stages_of(config)
    assert (stage.queries, stage.num_rounds) == (18, 5)
    assert int(state.queries) == int(state.answered.sum()) == 18
    newest = (np.arange(12, 18)) % 16
    np.testing.assert_array_equal(state.replay.images[newest], seen[2])
    (_, (adam, _)) = state.generator.opt_state
    (_, (_, schedule)) = state.clones.opt_state
    assert int(adam.count) == stage.generator_updates == 2
    assert int(schedule.count) == stage.clone_updates == 3 + 2
