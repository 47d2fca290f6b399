"""Whole rounds on tiny networks: what is counted, what is compiled, what is donated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from disguide_jax import optim, replay, steps, studies, updates
from disguide_jax.config import ClonesConfig, ReplayConfig, ScheduleConfig
from disguide_jax.errors import UserError
from disguide_jax.methods import disguide

VICTIM = jax.tree_util.Partial(tiny.brightness)


def tiny_step(config):
    networks, tx, state = tiny.build(config)
    step = steps.make_train_step(config, networks, tx, channels=3)
    return networks, tx, state, step


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def assert_close(a, b, **tolerance):
    def compare(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, **tolerance)

    jax.tree.map(compare, a, b)


@pytest.mark.parametrize("augmented", [False, True])
def test_a_round_is_a_generator_update_a_query_and_b_plus_one_clone_updates_in_this_order(
    augmented,
):
    config = tiny.config()
    if augmented:
        config.replay.crop_padding, config.replay.flip = 2, True
    networks, tx, state, step = tiny_step(config)
    found, metrics = jax.jit(step)(state, VICTIM)

    @jax.jit
    def by_hand(s):
        z, gray = updates.draw_latent(updates.round_key(s, disguide.GENERATOR), 6, 4, 3)
        s, first = disguide.update_generator(s, networks, tx, z, gray, config=config)
        z, gray = updates.draw_latent(updates.round_key(s, disguide.CLONES), 6, 4, 3)
        images, _ = updates.generate(  # eval mode: running statistics
            networks.generator, s.generator, z, gray, gray_every=8, train=False
        )
        s, images, labels = updates.query(s, VICTIM, images)
        loss_fn = updates.make_clone_loss(config.clones, labels="hard")
        update = functools.partial(updates.update_clones, clones=networks.clones)
        s, second = update(s, tx=tx.clones, loss_fn=loss_fn, images=images, answers=labels)
        for key in jax.random.split(updates.round_key(s, disguide.REPLAY), 2):
            images, labels = replay.sample(s.replay, key, 6)
            if augmented:
                key = jax.random.fold_in(key, disguide.AUGMENT)
                images = updates.augment(key, images, padding=2, flip=True, black=-1)
            s, _ = update(s, tx=tx.clones, loss_fn=loss_fn, images=images, answers=labels)
        return s.replace(round=s.round + 1), first | second

    expected, expected_metrics = by_hand(state)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)


def test_every_image_the_victim_sees_is_counted_and_no_other():
    config = tiny.config()
    _, _, state, step = tiny_step(config)
    seen = []

    def victim(images):
        jax.debug.callback(lambda n: seen.append(int(n)), images.shape[0], ordered=True)
        return tiny.brightness(images)

    play = jax.jit(step)
    for _ in range(5):
        state, _ = play(state, jax.tree_util.Partial(victim))
    jax.effects_barrier()
    assert sum(seen) == int(state.queries) == 5 * disguide.queries_per_round(config) == 30
    assert int(state.replay.head) == 30 % 16
    assert int(state.replay.size) == 16


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_rounds_looped_on_the_device_equal_single_calls(labels):
    config = tiny.config(labels=labels)
    victim = VICTIM
    if labels == "soft":
        victim = jax.tree_util.Partial(tiny.soft_brightness)
    _, _, state, step = tiny_step(config)
    looped = steps.make_train_call(step, looped=True)
    single = steps.make_train_call(step, looped=False)
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
    _, _, state, step = tiny_step(config)
    call = steps.make_train_call(step, looped=looped)
    first = state
    for num_rounds in (2, 2, 1):
        state, _, _ = call(state, VICTIM, num_rounds)
    assert call._cache_size() == 1
    assert first.replay.images.is_deleted()
    assert first.clones.params["fc"]["kernel"].is_deleted()


def test_a_loop_stops_at_the_round_whose_metrics_are_not_finite():
    config = tiny.config()
    _, _, state, step = tiny_step(config)

    def failing_step(state, victim):
        after, metrics = step(state, victim)
        spoilt = jnp.where(after.round == 2, jnp.nan, metrics["clones/loss"])
        return after, metrics | {"clones/loss": spoilt}

    state, sums, played = steps.make_train_call(failing_step, looped=True)(state, VICTIM, 5)
    assert int(played) == int(state.round) == 2
    assert int(state.queries) == 12
    assert np.isnan(sums["clones/loss"])


def test_rounds_depend_on_seed_and_round_only():
    config = tiny.config()
    _, _, state = tiny.build(config)
    other = tiny.build(tiny.config(seed=1))[2]
    keys = [updates.round_key(s, 0) for s in (state, state.replace(round=1), other)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


def test_clones_start_apart():
    _, _, state = tiny.build(tiny.config())
    kernel = state.clones.params["fc"]["kernel"]
    assert (kernel[0] != kernel[1]).all()


@pytest.mark.parametrize(("budget", "rounds"), [(6, 1), (11, 1), (12, 2), (60, 10), (65, 10)])
def test_a_last_batch_that_does_not_fit_the_budget_is_not_sent(budget, rounds):
    assert steps.num_rounds(tiny.config(query_budget=budget)) == rounds


def test_a_budget_below_one_round_is_refused():
    with pytest.raises(UserError, match=r"query_budget is 5; it must be at least 6"):
        steps.num_rounds(tiny.config(query_budget=5))


@pytest.mark.parametrize("num_clones", [0, 1])
def test_disguide_needs_two_clones(num_clones):
    with pytest.raises(UserError, match=f"num_clones is {num_clones}"):
        steps.method_of(tiny.config(num_clones=num_clones))


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"method is 'magic'.*disguide"):
        steps.method_of(tiny.config(method="magic"))


def test_more_than_two_clones_and_no_replay_batches_play_as_well():
    config = tiny.config(num_clones=3, replay=ReplayConfig(size=6, batches=0))
    _, _, state, step = tiny_step(config)
    state, metrics = jax.jit(step)(state, VICTIM)
    assert state.clones.params["fc"]["kernel"].shape[0] == 3
    assert "clones/replay_loss" not in metrics
    assert int(state.queries) == 6


def test_learning_rates_fall_at_the_budget_fractions_for_both_networks():
    """By what SGD and Adam really apply: the size of updates on constant gradients."""
    config = tiny.config(query_budget=60)  # 10 rounds: boundaries at rounds 4 and 8
    tx = steps.make_optimizers(config)
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
    found = relative_rates(steps.make_optimizers(config).clones, 3, 0.03)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_average_of_the_clones_follows_them_and_is_the_result():
    config = tiny.config(clones=ClonesConfig(average_decay=0.2, learning_rate=0.1))
    _, _, state, step = tiny_step(config)
    play, expected = jax.jit(step), state.clones
    for round_ in (1, 2, 3):
        state, _ = play(state, VICTIM)
        kept = min(0.2, round_ / (9 + round_))  # 0.1, 0.18, 0.2
        expected = jax.tree.map(
            lambda a, c, kept=kept: kept * a + (1 - kept) * c, expected, state.clones
        )
    assert_close(steps.result(config, state), expected, rtol=1e-5, atol=1e-6)
    config.clones.average_decay = 0.0
    assert steps.result(config, state) is state.clones


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
    schedule = ScheduleConfig(block_rounds=150)
    found = optim.schedule_boundaries(schedule, budget // 256)
    assert list(found) == boundaries
    assert np.prod(list(found.values())) == pytest.approx(0.09)


def test_c10_hard_goes_by_the_authors_blocks():
    config = studies.load_config("c10_hard")
    tx = steps.make_optimizers(config)
    rates = [float(tx.clones_rate(r)) for r in (0, 12_449, 12_450, 25_049, 25_050)]
    np.testing.assert_allclose(rates, [0.03, 0.03, 0.009, 0.009, 0.0027], rtol=1e-5)
    rates = [float(tx.generator_rate(r)) for r in (0, 12_449, 12_450, 25_049, 25_050)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 3e-5, 3e-5, 9e-6], rtol=1e-5)


def test_a_cosine_ends_with_the_budget():
    config = tiny.config(schedule=ScheduleConfig(shape="cosine"))  # 10 rounds
    tx = steps.make_optimizers(config)
    found = [float(tx.clones_rate(r)) for r in (0, 5, 9, 10)]
    expected = [0.03 * (1 + np.cos(np.pi * r / 10)) / 2 for r in (0, 5, 9, 10)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)
