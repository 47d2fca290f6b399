"""Runs that are stuck are noticed, those that are not are left in peace, and restarts are exact."""

import contextlib
import io
import json
import math
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT

from disguide_jax.config import ClonesConfig, to_dict
from disguide_jax.core import learn
from disguide_jax.core.types import Variables
from disguide_jax.errors import UserError
from disguide_jax.files import workdir
from disguide_jax.options import VictimConfig
from disguide_jax.run import compiled, extraction, guard
from disguide_jax.run import program as parts
from disguide_jax.study.results import Cell

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
    cell = Cell("", name, tuple(({"guard": "warn"} | changes).items()))
    return cell.load(0)


STUCK = {"query_budget": 240, "clones.learning_rate": 0.05}


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def stuck_at(workdir):
    return {x["queries"]: x["guard/stuck"] for x in lines_of(workdir) if "guard/stuck" in x}


class Run(NamedTuple):
    folder: pathlib.Path
    summary: dict
    out: str


@pytest.fixture(scope="module")
def warned(tmp_path_factory) -> Run:
    """A run that is stuck and is only told so."""
    folder, out = tmp_path_factory.mktemp("warned"), io.StringIO()
    with contextlib.redirect_stdout(out):
        summary = extraction.train_and_evaluate(config(**STUCK), folder)
    return Run(folder, summary, out.getvalue())


@pytest.mark.slow
def test_warnings_come_once_and_stop_saves_and_can_be_continued(tmp_path, warned):
    found = stuck_at(warned.folder)
    assert found[24] == "classes"
    assert set(found.values()) == {"classes", "agreement"}, "the clones end in agreement"
    assert list(found.values()).count("classes") == 1
    message = "guard: the victim names hardly more than one class, after 24 queries"
    assert warned.out.count(message) == 1

    with pytest.raises(UserError, match=r"stuck: the victim names .* stops after 24 queries"):
        extraction.train_and_evaluate(config(**STUCK, guard="stop"), tmp_path / "stop")
    assert not (tmp_path / "stop/summary.json").exists()
    continued = extraction.train_and_evaluate(config(**STUCK), tmp_path / "stop")
    assert continued["clones_sha256"] == warned.summary["clones_sha256"]
    assert continued["queries"] == 240


@pytest.mark.slow
def test_a_restart_pays_nothing_twice_and_survives_a_kill(tmp_path, monkeypatch, warned):
    restart = config(**STUCK, guard="restart")
    whole = extraction.train_and_evaluate(restart, tmp_path / "whole")
    assert whole["queries"] == 240
    assert list(stuck_at(tmp_path / "whole"))[:2] == [24, 48], "again after three more lines"
    assert whole["clones_sha256"] != warned.summary["clones_sha256"]

    calls = []

    def crash(*args, **kwargs):
        calls.append(1)
        if len(calls) == 9:  # after the restart at 24 and a checkpoint that has it
            raise MemoryError
        return train_call(*args, **kwargs)

    train_call, make = None, compiled.make_call

    def make_crashing(*args, **kwargs):
        nonlocal train_call
        train_call = make(*args, **kwargs)
        return crash

    with monkeypatch.context() as patched:
        patched.setattr(compiled, "make_call", make_crashing)
        with pytest.raises(MemoryError):
            extraction.train_and_evaluate(restart, tmp_path / "parts")
    parts = extraction.train_and_evaluate(restart, tmp_path / "parts")
    assert parts["clones_sha256"] == whole["clones_sha256"]
    assert stuck_at(tmp_path / "parts") == stuck_at(tmp_path / "whole")


@pytest.mark.slow
def test_a_generator_that_has_run_away_is_saturated(tmp_path):
    away = config(**{"generator.learning_rate": 100.0, "query_budget": 80})
    extraction.train_and_evaluate(away, tmp_path)
    assert any("saturated" in found for found in stuck_at(tmp_path).values())


@pytest.mark.slow
def test_a_run_that_learns_is_left_in_peace(tmp_path):
    healthy = config(
        query_budget=400,
        victim=VictimConfig(weights="embedded:digits-lenet5.safetensors"),
        **{"replay.size": 400, "generator.learning_rate": 1e-3},
    )
    extraction.train_and_evaluate(healthy, tmp_path)
    assert not stuck_at(tmp_path)
    for line in lines_of(tmp_path):
        assert sum(line["victim/class_share"]) == pytest.approx(1)
        assert 0 <= line["gen/saturation"] <= 1


def test_answers_are_counted_by_class():
    settings = tiny.config()
    kit, state = tiny.build(settings)
    step = tiny.make_step(kit)
    state, _ = jax.jit(step)(state, jax.tree_util.Partial(tiny.brightness))
    answers = np.asarray(state.replay.answers[:6])
    np.testing.assert_array_equal(state.answered, np.bincount(answers, minlength=tiny.NUM_CLASSES))


@pytest.mark.parametrize("clones_too", [False, True])
def test_a_restart_makes_networks_anew_and_keeps_what_was_paid_for(clones_too):
    settings = tiny.config(clones=ClonesConfig(average_decay=0.5, learning_rate=0.1))
    kit, state = tiny.build(settings)
    step = jax.jit(tiny.make_step(kit))
    for _ in range(2):
        state, _ = step(state, jax.tree_util.Partial(tiny.brightness))
    found = parts.restart(kit, state, clones_too=clones_too)
    again = parts.restart(kit, state, clones_too=clones_too)

    def equal(one, other):
        same = jax.tree.map(lambda x, y: bool((x == y).all()), one, other)
        return all(jax.tree.leaves(same))

    assert equal(found.generator.variables, again.generator.variables)
    assert not equal(found.generator.params, state.generator.params)
    assert equal(found.replay, state.replay)
    assert (int(found.queries), int(found.round)) == (int(state.queries), 2)
    assert equal(found.clones, state.clones) == (not clones_too)
    assert equal(found.average.clones, found.clones.variables) == clones_too
    assert int(found.average.rounds) == (0 if clones_too else 2)
    (_, (adam, schedule)) = found.generator.opt_state
    assert (int(adam.count), int(schedule.count)) == (0, 2)
    step(found, jax.tree_util.Partial(tiny.brightness))


def test_a_restarted_optimiser_begins_with_steps_of_the_scheduled_learning_rate():
    """By what it does: on a constant gradient Adam's steps are the learning rate from the first."""
    settings = tiny.config(query_budget=60)  # 10 rounds: rates fall at 4 and 8
    tx = tiny.build(settings)[0].tx.generator
    params, gradient = {"w": jnp.ones(3)}, {"w": jnp.full(3, 0.5)}
    learner = learn.start(Variables(params, {}), tx)
    for _ in range(6):
        learner = learn.descend(learner, tx, gradient, {})
    opt_state = learn.start_again(learner, Variables(params, {}), tx).opt_state
    for scale in (0.3, 0.3, 0.09):
        update, opt_state = tx.update(gradient, opt_state, params)
        np.testing.assert_allclose(update["w"], -1e-4 * scale, rtol=1e-3)


def test_a_restarted_optimiser_of_a_constant_rate_is_a_fresh_one():
    tx = learn.adam(1e-3, weight_decay=0.0)
    fresh = learn.start(Variables({"w": jnp.ones(3)}, {}), tx)
    used = learn.descend(fresh, tx, fresh.params, {})
    again = learn.start_again(used, fresh.variables, tx)
    jax.tree.map(np.testing.assert_array_equal, again, fresh)


def test_another_guard_may_continue_a_run_and_dfms_cannot_restart():
    before = json.loads(json.dumps(to_dict(config(guard="stop"))))
    workdir.refuse_other_config(before, config(guard="restart"), ROOT, extend=False)
    seldom = config(guard="restart", log_every_queries=16)
    with pytest.raises(UserError, match=r"config\.log_every_queries: 8, now 16"):
        workdir.refuse_other_config(before, seldom, ROOT, extend=False)
    dfms = config("digits_dfms:smoke", guard="restart")
    with pytest.raises(UserError, match=r"guard is 'restart'; dfms"):
        parts.stages_of(dfms)


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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dual_students", "dfme", "maze", "dfms"])
def test_every_method_with_two_clones_logs_what_the_guard_looks_at(method, tmp_path):
    extraction.train_and_evaluate(config(f"digits_{method}:smoke"), tmp_path)
    lines = [line for line in lines_of(tmp_path) if "gen/saturation" in line]
    assert lines
    for line in lines:
        assert 0 <= line["gen/disagreement"] <= 1
    assert any("victim/class_share" in line for line in lines)
