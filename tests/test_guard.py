"""Runs that are stuck are noticed, those that are not are left in peace, and restarts are exact."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT

from disguide_jax import guard, optim, plan, steps, studies, train
from disguide_jax.config import ClonesConfig, VictimConfig, to_dict
from disguide_jax.errors import UserError

HEALTHY = {"gen/disagreement": 0.02, "victim/class_share": [0.1] * 10, "gen/saturation": 0.3}


def test_effective_classes_are_those_that_would_be_named_equally_often():
    assert guard.effective_classes([0.25] * 4) == pytest.approx(4)
    assert guard.effective_classes([1.0, 0.0]) == 1
    expected = math.exp(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)))
    assert guard.effective_classes([0.9, 0.1]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"gen/disagreement": 0.0009}, ["agreement"]),
        ({"gen/disagreement": 0.0011}, []),
        ({"victim/class_share": [0.95, 0.05, *[0.0] * 8]}, ["classes"]),
        ({"victim/class_share": [0.5, 0.5, *[0.0] * 8]}, []),
        ({"gen/saturation": 0.995}, ["saturated"]),
        ({"gen/disagreement": 0.0, "gen/saturation": 1.0}, ["agreement", "saturated"]),
    ],
)
def test_symptoms_are_seen_in_a_line_of_the_log(changes, expected):
    assert guard.symptoms(HEALTHY | changes) == expected


def test_what_a_method_does_not_log_is_not_judged():
    assert guard.symptoms({"clones/loss": 0.0}) == []


def test_a_symptom_must_last_and_one_good_line_ends_it():
    lines, seen = {}, []
    for disagreement in (0, 0, 0.02, 0, 0, 0, 0, 0.02):
        lines = guard.count(lines, HEALTHY | {"gen/disagreement": disagreement})
        seen.append(guard.stuck(lines))
    assert seen == [[], [], [], [], [], ["agreement"], ["agreement"], []]


def config(name="digits_soft:smoke", **changes):
    """A random victim, which gives all images one class, and whose clones soon agree on it."""
    cell = studies.Cell("", name, tuple(changes.items()))
    return cell.load(0)


STUCK = {"query_budget": 240, "clones.learning_rate": 0.05}


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def stuck_at(workdir):
    return {x["queries"]: x["guard/stuck"] for x in lines_of(workdir) if "guard/stuck" in x}


def test_warnings_come_once_and_stop_saves_and_can_be_continued(tmp_path, capsys):
    warned = train.train_and_evaluate(config(**STUCK), tmp_path / "warn")
    found = stuck_at(tmp_path / "warn")
    assert found[24] == "classes"
    assert set(found.values()) == {"classes", "agreement"}, "the clones end in agreement"
    assert list(found.values()).count("classes") == 1
    out = capsys.readouterr().out
    assert out.count("guard: the victim names hardly more than one class, after 24 queries") == 1

    with pytest.raises(UserError, match=r"stuck: the victim names .* stops after 24 queries"):
        train.train_and_evaluate(config(**STUCK, guard="stop"), tmp_path / "stop")
    assert not (tmp_path / "stop/summary.json").exists()
    continued = train.train_and_evaluate(config(**STUCK), tmp_path / "stop")
    assert continued["clones_sha256"] == warned["clones_sha256"]
    assert continued["queries"] == 240


def test_a_restart_pays_nothing_twice_and_survives_a_kill(tmp_path, monkeypatch):
    restart = config(**STUCK, guard="restart")
    whole = train.train_and_evaluate(restart, tmp_path / "whole")
    assert whole["queries"] == 240
    assert list(stuck_at(tmp_path / "whole"))[:2] == [24, 48], "again after three more lines"
    warned = train.train_and_evaluate(config(**STUCK), tmp_path / "warn")
    assert whole["clones_sha256"] != warned["clones_sha256"]

    calls = []

    def crash(*args, **kwargs):
        calls.append(1)
        if len(calls) == 9:  # after the restart at 24 and a checkpoint that has it
            raise MemoryError
        return train_call(*args, **kwargs)

    train_call, make = None, steps.make_train_call

    def make_crashing(*args, **kwargs):
        nonlocal train_call
        train_call = make(*args, **kwargs)
        return crash

    with monkeypatch.context() as patched:
        patched.setattr(steps, "make_train_call", make_crashing)
        with pytest.raises(MemoryError):
            train.train_and_evaluate(restart, tmp_path / "parts")
    parts = train.train_and_evaluate(restart, tmp_path / "parts")
    assert parts["clones_sha256"] == whole["clones_sha256"]
    assert stuck_at(tmp_path / "parts") == stuck_at(tmp_path / "whole")


def test_a_generator_that_has_run_away_is_saturated(tmp_path):
    away = config(**{"generator.learning_rate": 100.0, "query_budget": 80})
    train.train_and_evaluate(away, tmp_path)
    assert any("saturated" in found for found in stuck_at(tmp_path).values())


def test_a_run_that_learns_is_left_in_peace(tmp_path):
    healthy = config(
        query_budget=400,
        victim=VictimConfig(weights="embedded:digits-lenet5.safetensors"),
        **{"replay.size": 400, "generator.learning_rate": 1e-3},
    )
    train.train_and_evaluate(healthy, tmp_path)
    assert not stuck_at(tmp_path)
    for line in lines_of(tmp_path):
        assert sum(line["victim/class_share"]) == pytest.approx(1)
        assert 0 <= line["gen/saturation"] <= 1


def test_answers_are_counted_by_class():
    settings = tiny.config()
    networks, tx, state = tiny.build(settings)
    step = steps.make_train_step(settings, networks, tx, channels=3)
    state, _ = jax.jit(step)(state, jax.tree_util.Partial(tiny.brightness))
    answers = np.asarray(state.replay.answers[:6])
    np.testing.assert_array_equal(state.answered, np.bincount(answers, minlength=tiny.NUM_CLASSES))


@pytest.mark.parametrize("clones_too", [False, True])
def test_a_restart_makes_networks_anew_and_keeps_what_was_paid_for(clones_too):
    settings = tiny.config(clones=ClonesConfig(average_decay=0.5, learning_rate=0.1))
    networks, tx, state = tiny.build(settings)
    step = jax.jit(steps.make_train_step(settings, networks, tx, channels=3))
    for _ in range(2):
        state, _ = step(state, jax.tree_util.Partial(tiny.brightness))
    found = steps.restart(networks, tx, state, clones_too=clones_too)
    again = steps.restart(networks, tx, state, clones_too=clones_too)

    def equal(one, other):
        same = jax.tree.map(lambda x, y: bool((x == y).all()), one, other)
        return all(jax.tree.leaves(same))

    assert equal(found.generator, again.generator)
    assert not equal(found.generator.params, state.generator.params)
    assert equal(found.replay, state.replay)
    assert (int(found.queries), int(found.round)) == (int(state.queries), 2)
    assert equal(found.clones, state.clones) == (not clones_too)
    assert equal(found.extra.clones, found.clones) == clones_too
    assert int(found.extra.rounds) == (0 if clones_too else 2)
    (_, (adam, schedule)) = found.generator_opt
    assert (int(adam.count), int(schedule.count)) == (0, 2)
    step(found, jax.tree_util.Partial(tiny.brightness))


def test_a_restarted_optimiser_begins_with_steps_of_the_scheduled_learning_rate():
    """By what it does: on a constant gradient Adam's steps are the learning rate from the first."""
    settings = tiny.config(query_budget=60)  # 10 rounds: rates fall at 4 and 8
    tx = steps.make_optimizers(settings).generator
    params, gradient = {"w": jnp.ones(3)}, {"w": jnp.full(3, 0.5)}
    opt_state = tx.init(params)
    for _ in range(6):
        _, opt_state = tx.update(gradient, opt_state, params)
    opt_state = optim.start_again(tx, params, opt_state)
    for scale in (0.3, 0.3, 0.09):
        update, opt_state = tx.update(gradient, opt_state, params)
        np.testing.assert_allclose(update["w"], -1e-4 * scale, rtol=1e-3)


def test_a_restarted_optimiser_of_a_constant_rate_is_a_fresh_one():
    tx = optim.adam(1e-3, 0.0)
    params = {"w": jnp.ones(3)}
    _, used = tx.update(params, tx.init(params), params)
    jax.tree.map(
        np.testing.assert_array_equal, optim.start_again(tx, params, used), tx.init(params)
    )


def test_another_guard_may_continue_a_run_and_dfms_cannot_restart():
    before = json.loads(json.dumps(to_dict(config(guard="stop"))))
    plan.refuse_other_config(before, config(guard="restart"), ROOT, extend=False)
    seldom = config(guard="restart", log_every_queries=16)
    with pytest.raises(UserError, match=r"config\.log_every_queries: 8, now 16"):
        plan.refuse_other_config(before, seldom, ROOT, extend=False)
    dfms = config("digits_dfms:smoke", guard="restart")
    with pytest.raises(UserError, match=r"guard is 'restart'; dfms"):
        steps.stages(dfms)


def test_the_kept_runs_were_never_stuck():
    """Those whose logs have what the guard looks at: all on the digits, and the one on CIFAR-10."""
    judged = []
    for path in sorted((ROOT / "results").glob("**/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if not {"victim/class_share", "gen/saturation"} <= set().union(*lines):
            continue
        on_end = {}
        for line in lines:
            on_end = guard.count(on_end, line)
            assert not guard.stuck(on_end), path
        if "gen/disagreement" in set().union(*lines):
            judged.append(path.relative_to(ROOT / "results").parts)
    for family in ("digits_hard", "digits_soft", "digits_soft_best"):
        assert sum(parts[:2] == ("digits", family) for parts in judged) == 5
    assert ("cifar10_cpu", "metrics.jsonl") in judged


@pytest.mark.parametrize("method", ["dual_students", "dfme", "maze", "dfms"])
def test_every_method_with_two_clones_logs_what_the_guard_looks_at(method, tmp_path):
    train.train_and_evaluate(config(f"digits_{method}:smoke"), tmp_path)
    lines = [line for line in lines_of(tmp_path) if "gen/saturation" in line]
    assert lines
    for line in lines:
        assert 0 <= line["gen/disagreement"] <= 1
    assert any("victim/class_share" in line for line in lines)
