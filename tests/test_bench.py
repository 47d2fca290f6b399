"""The benchmarks run, say what they promise to say, and count right."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, load_script

from disguide_jax import cli
from disguide_jax.config import Config
from disguide_jax.study import bench, measure, suites

SMOKE = f"--config={ROOT / 'configs/digits_hard.py'}:smoke"
TIMES = {"case", "median_seconds", "p10_seconds", "p90_seconds", "turns"}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command line; returns status, output, errors and what the JSON holds."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, config: str = SMOKE) -> tuple[int, str, str, dict | None]:
        argv = ["bench.py", config, "--json=out/found.json", "--seconds=0", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        script = load_script("bench")
        with pytest.raises(SystemExit) as exit_:
            cli.run(script.main, script.FLAGS, Config)
        path = tmp_path / "out/found.json"
        text = path.read_text() if path.exists() else ""
        return exit_.value.code or 0, *capsys.readouterr(), json.loads(text) if text else None

    return run


def cases(found: dict) -> dict[str, dict]:
    rows = {row["case"]: row for row in found["results"]}
    for row in rows.values():
        assert row.keys() >= TIMES
        assert 0 < row["p10_seconds"] <= row["median_seconds"] <= row["p90_seconds"]
        assert row["turns"] >= measure.MIN_TURNS
    return rows


@pytest.mark.slow
def test_clone_step_compares_three_ways_and_says_where_it_ran(run):
    status, out, err, found = run("--suite=clone_step")
    assert status == 0, err
    rows = cases(found)
    assert [*rows] == ["clones_vmapped", "clones_separate", "clones_grouped"]
    assert rows["clones_separate"]["ratio_to_separate"] == 1
    assert len({row["flops"] for row in rows.values()}) == 1
    for row in rows.values():
        np.testing.assert_allclose(
            row["ratio_to_separate"],
            row["median_seconds"] / rows["clones_separate"]["median_seconds"],
        )
        assert row["case"] in out
    assert found["hardware"].keys() >= {"device_kind", "cpu", "cores"}
    assert found["versions"]["jax"] == jax.__version__
    assert "--suite=clone_step" in found["command"]


@pytest.mark.slow
def test_seeds_in_one_process_are_compared_with_a_process_for_each(run):
    status, _, err, found = run("--suite=seeds", "--config.seeds=0,1")
    assert status == 0, err
    rows = {row["case"]: row for row in found["results"]}
    assert [*rows] == ["one_process", "one_after_the_other", "side_by_side"]
    assert rows["one_process"]["ratio_to_one_process"] == 1
    assert all(row["seeds"] == 2 and row["median_seconds"] > 0 for row in rows.values())


@pytest.mark.slow
def test_clone_steps_differ_in_their_convolutions_and_not_in_what_they_find():
    config = load_script(ROOT / "configs/c10_hard.py").get_config("smoke")
    kit = measure.make_kit(config)
    batch = measure.make_batch(kit)
    found, groups = {}, {}
    for name, (step, state) in bench.make_clone_steps(kit).items():
        groups[name] = "group_count=2" in str(step.trace(state, *batch).jaxpr)
        state, metrics = step(state, *batch)
        kernels = state.params
        kernels = jnp.stack(
            [k["linear"]["kernel"] for k in kernels]
            if isinstance(kernels, tuple)
            else list(kernels["linear"]["kernel"])
        )
        found[name] = metrics["clones/loss"], kernels
    assert groups == {"clones_vmapped": False, "clones_separate": False, "clones_grouped": True}
    for name in ("clones_vmapped", "clones_grouped"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            found[name],
            found["clones_separate"],
        )


@pytest.mark.slow
def test_round_has_its_parts_and_grows_with_what_is_varied(run):
    cache = jax.config.jax_compilation_cache_dir
    status, out, err, found = run("--suite=round", "--sweep", "--vary=replay.batches=0")
    assert status == 0, err
    rows = cases(found)
    parts = {"generator_step", "victim", "clone_steps", "replay"}
    parts |= {"evaluation", "checkpoint", "host"}
    assert rows.keys() == parts | {"round", "matmul", "round,replay.batches=0"}
    assert all(rows[part]["share"] > 0 for part in parts)
    whole, varied = rows["round"], rows["round,replay.batches=0"]
    assert whole["flops"] > varied["flops"] > whole["flops"] / 2
    assert whole["share_of_matmul_peak"] > 0
    assert whole["queries_per_second"] == pytest.approx(8 / whole["median_seconds"])
    assert whole["queries_per_second_overall"] < whole["queries_per_second"]
    assert whole["compile_cold_seconds"] > 0 < whole["compile_warm_seconds"]
    assert whole["peak_memory_bytes"] > 2**20
    assert rows["evaluation"]["every_rounds"] == rows["checkpoint"]["every_rounds"] == 2
    assert "the victim, a lenet5, are random" in out
    assert jax.config.jax_compilation_cache_dir == cache


@pytest.mark.slow
def test_endpoints_take_turns_with_the_same_network_inside_jax(run):
    weights = "--config.victim.weights=embedded:digits-lenet5.safetensors"
    status, _, err, found = run("--suite=endpoint", weights)
    assert status == 0, err
    rows = cases(found)
    assert [*rows] == ["in JAX", "python", "onnx", "http, 1 at a time", "http, 8 at a time"]
    for row in rows.values():
        assert row["queries_per_second"] == pytest.approx(8 / row["median_seconds"])


def test_endpoints_are_made_of_a_file_of_weights(run):
    status, _, err, _ = run("--suite=endpoint")
    assert status == 2
    assert "config.victim.weights is 'random'; suite endpoint serves what is in a file" in err


def test_replay_is_measured_at_each_size_that_fits(run, monkeypatch):
    monkeypatch.setattr(measure, "free_memory", lambda: 2 * 100_000)  # float32: 4 kB an image
    status, out, err, found = run("--suite=replay", "--sizes=20,60")
    assert status == 0, err
    assert [*cases(found)] == [
        f"{what}/{buffer}"
        for buffer in ("uint8/20", "uint8/60", "float32/20")
        for what in ("insert", "sample", "permutation")
    ]
    assert "float32/60 is left out" in out
    assert found["notes"] == [line[1:-1] for line in out.splitlines() if line.startswith("(")]


@pytest.mark.slow
def test_checkpoint_measures_a_smaller_buffer_where_memory_is_short(run, monkeypatch):
    needed = 200 * (32 * 32 * 4 + 4)
    monkeypatch.setattr(measure, "free_memory", lambda: 2 * needed)
    status, out, err, found = run(
        "--suite=checkpoint",
        "--sizes=20,200",
        "--config.checkpoint_every_queries=100",
        "--queries_per_second=1000",
    )
    assert status == 0, err
    rows = cases(found)
    assert [*rows] == ["checkpoint/uint8/200", "checkpoint/float32/200"]
    small, scaled = rows.values()
    assert (small["images"], small["images_written"]) == (200, 100)
    assert small["scaled_seconds"] == small["median_seconds"]
    assert small["seconds_between_checkpoints"] == 0.1
    # A buffer and half of it do not fit, those of half the size do.
    assert (scaled["images"], scaled["images_written"]) == (100, 50)
    assert scaled["scaled_seconds"] == 2 * scaled["median_seconds"]
    assert "1/2 of the images" in out
    images = 50 * 32 * 32 * 4
    assert images < scaled["bytes_written"] < 10 * images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--suite is missing"),
        (("--suite=everything",), "suite"),
        (("--suite=replay", "--sizes=many"), "'many' must be a whole number"),
        (("--suite=round", "--sweep", "--vary=no_such_key=1"), "'no_such_key=1'"),
        (("--suite=round", "--sweep", "--vary=batch_size=1"), "config.batch_size is 1"),
        (("--suite=replay", "--config.num_clones=0"), "config.num_clones is 0"),
        (("--suite=replay", "--json=/dev/null/found.json"), "cannot be written"),
    ],
)
def test_a_mistake_is_one_message(run, arguments, message):
    status, _, err, _ = run(*arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_what_is_measured_when_nothing_is_named_is_found_from_every_folder(monkeypatch, tmp_path):
    for folder in (tmp_path, ROOT, ROOT / "scripts"):
        monkeypatch.chdir(folder)
        name, _, path = suites.default_config()[0].partition("=")
        assert name == "--config"
        assert pathlib.Path(path).resolve() == ROOT / "configs/c10_soft.py"
