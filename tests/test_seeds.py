"""Seeds that share a process are what they are by themselves, and leave each other alone."""

import json
import os
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT
from on_devices import as_float64, config_of

from disguide_jax.core import backend, seeds
from disguide_jax.core.exchange import make_call
from disguide_jax.errors import Stopped, UserError
from disguide_jax.run import extraction, observer
from disguide_jax.run import program as parts
from disguide_jax.run import seeds as several
from disguide_jax.study.results import Cell


def config(of=(), name="digits_hard:smoke", seed=0, **changes):
    found = Cell("", name, tuple(changes.items())).load(seed)
    found.seeds = of
    return found


def lines_of(workdir):
    """The log but for times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def without_times(summary):
    config = {k: v for k, v in summary["config"].items() if k != "devices"}
    ignored = ("wall_seconds", "queries_per_second", "config")
    return {k: v for k, v in summary.items() if k not in ignored} | config


def assert_same_to_rounding(one, other):
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for mine, yours in zip(one, other, strict=True):
        chex.assert_trees_all_close(mine, yours, rtol=1e-3, atol=1e-5)


def test_each_seed_is_bit_for_bit_the_run_by_itself_and_nothing_is_built_twice(
    tmp_path, monkeypatch
):
    built = []
    build = parts.build
    monkeypatch.setattr(parts, "build", lambda config: built.append(1) or build(config))
    found = several.train_and_evaluate(config((3, 1)), tmp_path / "both")
    assert len(built) == 1
    for seed, summary in zip((3, 1), found, strict=True):
        alone = extraction.train_and_evaluate(config(seed=seed), tmp_path / f"{seed}")
        assert without_times(summary) == without_times(alone)
        assert lines_of(tmp_path / f"both/seed{seed}") == lines_of(tmp_path / f"{seed}")
    assert found[0]["clones_sha256"] != found[1]["clones_sha256"]


def test_runs_by_themselves_are_continued_together_and_the_other_way_round(tmp_path):
    longer = {"query_budget": 80}
    whole = several.train_and_evaluate(config((0, 1), **longer), tmp_path / "whole")
    extraction.train_and_evaluate(config(seed=1), tmp_path / "w/seed1")
    found = several.train_and_evaluate(config((0, 1), **longer), tmp_path / "w", extend=True)
    assert [s["queries"] for s in found] == [80, 80]
    assert found[0]["clones_sha256"] == whole[0]["clones_sha256"]

    several.train_and_evaluate(config((0, 1)), tmp_path / "v")
    again = extraction.train_and_evaluate(
        config(seed=1, **longer), tmp_path / "v/seed1", extend=True
    )
    assert again["clones_sha256"] == found[1]["clones_sha256"]


def test_one_that_fails_leaves_the_others_alone_and_is_named(tmp_path, capsys):
    several.train_and_evaluate(config((0, 1)), tmp_path)
    (tmp_path / "seed0/metrics.jsonl").write_text("")  # shorter than a checkpoint knows
    longer = config((0, 1), query_budget=80)
    with pytest.raises(UserError, match=r"seed0: .*was deleted or cut(.|\n)*others have ended"):
        several.train_and_evaluate(longer, tmp_path, extend=True)
    summary = json.loads((tmp_path / "seed1/summary.json").read_text())
    assert summary["queries"] == 80
    assert "seed 0: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ((0, 0), r"config.seeds is \(0, 0\); it must be different whole numbers"),
        ((-1,), r"config.seeds is \(-1,\); it must be different"),
        ((0, 2**32), "it must be different whole numbers from 0 to 4,294,967,295"),
    ],
)
def test_seeds_that_are_none_are_refused_before_anything_is_made(tmp_path, of, said):
    with pytest.raises(UserError, match=said):
        several.train_and_evaluate(config(of), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_workdir_of_another_run_is_refused_before_any_seed_is_played(tmp_path):
    extraction.train_and_evaluate(config(seed=5), tmp_path / "seed1")
    with pytest.raises(UserError, match="seed"):
        several.train_and_evaluate(config((0, 1)), tmp_path)
    assert not (tmp_path / "seed0").exists()


def test_a_single_run_has_a_single_seed(tmp_path):
    with pytest.raises(UserError, match=r"config.seeds is .*one run has one seed"):
        extraction.train_and_evaluate(config((0, 1)), tmp_path)


@pytest.mark.slow
def test_an_endpoint_is_asked_by_one_seed_at_a_time_with_a_ledger_for_each(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ask_brightness.py").write_text(
        "import numpy as np\n"
        "def ask(images):\n"
        "    return (images.reshape(len(images), -1).mean(1) // 26).astype(int).clip(0, 9)\n"
    )
    changes = {
        "victim.weights": "",
        "victim.endpoint": "python:ask_brightness:ask",
        "query_budget": 24,
    }
    found = several.train_and_evaluate(config((0, 1), **changes), tmp_path / "w")
    assert [s["queries"] for s in found] == [24, 24]
    assert (tmp_path / "w/seed0/ledger").is_dir()
    alone = extraction.train_and_evaluate(config(seed=1, **changes), tmp_path / "alone")
    assert alone["clones_sha256"] == found[1]["clones_sha256"]


# Several at once, as on a GPU.


@pytest.mark.slow
@pytest.mark.parametrize("method", ["disguide", "dual_students", "dfme", "maze", "dfms"])
def test_three_seeds_in_one_program_do_what_each_does_alone(method):
    # The selects that `vmap` makes of what each seed of dfms decides take its key, too.
    with jax.enable_x64(), jax.debug_key_reuse(False):
        config = config_of(method)
        if method != "dfms":
            config.query_budget //= 4
        stages, kits = parts.stages_of(config), tiny.make_kits(config)
        kit = kits[stages[-1].name]
        start = jax.jit(lambda key: as_float64(parts.init_state(kit, key)))
        states = [start(jax.random.key(seed)) for seed in (0, 1, 2)]
        soft = config.labels == "soft"
        victim = jax.tree_util.Partial(tiny.smooth_brightness if soft else tiny.brightness)
        together = seeds.stack(states)
        for stage in stages:
            play = parts.make_play(kits[stage.name], stage)
            call = make_call(play, looped=True)
            states = [call(state, victim, stage.num_rounds)[0] for state in states]
            over = make_call(seeds.over(play), looped=True)
            together, sums, played = over(together, victim, stage.num_rounds)
            assert int(played) == stage.num_rounds
            assert all(value.shape == (3,) for value in sums.values())
        for i, alone in enumerate(states):
            found = seeds.take(together, i)
            assert int(found.queries) == int(alone.queries)
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
                if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
                    one, other = jax.random.key_data(one), jax.random.key_data(other)
                np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


def test_putting_one_back_changes_no_other_and_no_counter():
    _, state = tiny.build(tiny.config())
    other = jax.tree.map(lambda x: x + 1 if x.dtype == jnp.float32 else x, state)
    both = seeds.put(seeds.stack([state, state]), 1, other)
    assert both.round.shape == both.replay.head.shape == ()
    first, second = seeds.take(both, 0), seeds.take(both, 1)
    chex.assert_trees_all_equal(first.clones, state.clones)
    chex.assert_trees_all_equal(second.clones, other.clones)


@pytest.fixture
def as_on_a_gpu():
    with backend.pretended("gpu"):
        yield


def on_gpu(of=(), **changes):
    return config(of, precision="float32", rounds_per_call=3, **changes)


@pytest.mark.slow
def test_runs_in_one_program_log_score_and_save_what_each_does_alone(tmp_path, as_on_a_gpu, capsys):
    found = several.train_and_evaluate(on_gpu((0, 4)), tmp_path / "both")
    assert "together   seed 0, seed 4: one program" in capsys.readouterr().out
    for seed, summary in zip((0, 4), found, strict=True):
        alone = extraction.train_and_evaluate(on_gpu(seed=seed), tmp_path / f"{seed}")
        assert summary["queries"] == alone["queries"]
        assert_same_to_rounding(
            lines_of(tmp_path / f"both/seed{seed}"), lines_of(tmp_path / f"{seed}")
        )
    longer = on_gpu(seed=4, query_budget=80)
    more = extraction.train_and_evaluate(longer, tmp_path / "both/seed4", extend=True)
    assert more["queries"] == 80
    # They have not played as many rounds now, and end together all the same.
    both = on_gpu((0, 4), query_budget=120)
    assert [
        s["queries"] for s in several.train_and_evaluate(both, tmp_path / "both", extend=True)
    ] == [120, 120]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_one_of_them(tmp_path, as_on_a_gpu, monkeypatch):
    several.train_and_evaluate(on_gpu((0, 1, 2)), tmp_path)
    begun = extraction.begun

    @extraction.contextlib.contextmanager
    def spoilt(program, functions, order, stop):
        with begun(program, functions, order, stop) as (place, state, progress):
            if order.config.seed == 1:
                nan = jax.tree.map(lambda x: x * jnp.nan, state.clones.params)
                state = state.replace(clones=state.clones._replace(params=nan))
            yield place, state, progress

    monkeypatch.setattr(extraction, "begun", spoilt)
    longer = on_gpu((0, 1, 2), query_budget=120)
    with pytest.raises(UserError, match=r"seed1: round \d+: .* is nan") as raised:
        several.train_and_evaluate(longer, tmp_path, extend=True)
    assert "seed0" not in str(raised.value)
    for seed in (0, 2):
        assert json.loads((tmp_path / f"seed{seed}/summary.json").read_text())["queries"] == 120


@pytest.mark.slow
def test_the_guard_restarts_one_and_the_others_go_on_as_they_were(
    tmp_path, as_on_a_gpu, monkeypatch
):
    before = several.train_and_evaluate(on_gpu((0, 1), query_budget=160), tmp_path / "before")
    look = observer.Observer._look

    def stuck(self, happened, state, spent):
        look(self, happened, state, spent)
        is_it = self._place.label == "seed 1" and happened.round == 6
        return ["agreement"] * is_it

    monkeypatch.setattr(observer.Observer, "_look", stuck)
    restarting = on_gpu((0, 1), query_budget=160, guard="restart")
    after = several.train_and_evaluate(restarting, tmp_path / "after")
    assert before[0]["clones_sha256"] == after[0]["clones_sha256"]
    assert before[1]["clones_sha256"] != after[1]["clones_sha256"]


@pytest.mark.slow
def test_one_signal_saves_all_of_them(tmp_path, as_on_a_gpu, monkeypatch):
    look = observer.Observer._look

    def interrupt(self, happened, state, spent):
        if happened.round == 6 and self._place.label == "seed 0":  # a second one stops at once
            os.kill(os.getpid(), signal.SIGTERM)
        return look(self, happened, state, spent)

    monkeypatch.setattr(observer.Observer, "_look", interrupt)
    with pytest.raises(Stopped):
        several.train_and_evaluate(on_gpu((0, 1), query_budget=240), tmp_path)
    monkeypatch.setattr(observer.Observer, "_look", look)
    rounds = [
        max(int(p.name) for p in (tmp_path / f"seed{i}/checkpoints").iterdir() if p.name.isdigit())
        for i in (0, 1)
    ]
    assert rounds[0] == rounds[1] < 30
    found = several.train_and_evaluate(on_gpu((0, 1), query_budget=240), tmp_path)
    whole = several.train_and_evaluate(on_gpu((0, 1), query_budget=240), tmp_path / "whole")
    assert [s["clones_sha256"] for s in found] == [s["clones_sha256"] for s in whole]


# On several devices.


@pytest.mark.slow
@pytest.mark.parametrize(("of", "num_devices"), [("0,1", 4), ("0,1,2", 2)])
def test_seeds_go_to_different_devices_first(tmp_path, of, num_devices):
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
    command = [sys.executable, "-m", "disguide_jax.main", "--config=configs/digits_hard.py:smoke"]
    done = subprocess.run(
        [*command, f"--config.seeds={of}", "--config.replay.size=32", f"--workdir={tmp_path}"],
        env=os.environ | {"XLA_FLAGS": f"{flags}{num_devices}", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for seed in map(int, of.split(",")):
        found = json.loads((tmp_path / f"seed{seed}/summary.json").read_text())
        assert found["config"]["devices"] == {4: 2, 2: 1}[num_devices]
        alone = config(seed=seed, devices=1, **{"replay.size": 32})
        whole = extraction.train_and_evaluate(alone, tmp_path / f"alone{seed}")
        if num_devices == 2:
            assert found["clones_sha256"] == whole["clones_sha256"]
        else:
            assert_same_to_rounding(
                lines_of(tmp_path / f"seed{seed}"), lines_of(tmp_path / f"alone{seed}")
            )
