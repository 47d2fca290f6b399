"""Several devices do what one does, whatever the method and their number."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

EIGHT = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"}
TO_ROUNDING = 1e-9  # in float64, over 20 rounds


def run(*command):
    """What a process prints that sees eight devices."""
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | EIGHT | path,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["disguide", "dual_students", "dfme", "maze", "dfms"])
def test_two_four_and_eight_devices_do_what_one_does(method):
    done = run(ROOT / "tests/on_devices.py", method)
    assert done.returncode == 0, done.stderr
    differences = [float(line) for line in done.stdout.split()]
    assert len(differences) == 3
    assert max(differences) < TO_ROUNDING


@pytest.mark.slow
def test_what_four_devices_saved_is_restored_on_one_two_and_eight():
    done = run(ROOT / "tests/on_devices.py", "checkpoints")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 3


def main(workdir, *arguments):
    """The program with a smoke configuration whose batch and replay four devices can share."""
    config = "--config=configs/digits_hard.py:smoke"
    return run(
        *("-m", "disguide_jax.main", config, "--config.replay.size=32", f"--workdir={workdir}"),
        *arguments,
    )


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    first = main(tmp_path, "--config.query_budget=40", "--config.devices=4")
    assert "4 of them" in first.stdout, first.stderr
    assert "on each device" in first.stdout
    more = main(tmp_path, "--config.query_budget=64", "--config.devices=2", "--extend")
    assert "continues after 40 queries" in more.stdout, more.stderr
    last = main(tmp_path, "--config.query_budget=80", "--extend")  # eight, which is all
    assert last.returncode == 0, last.stderr
    assert "8 of them" in last.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["queries"] == 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.devices=9"], "config.devices is 9; JAX finds 8 here (cpu (cpu))"),
        (["--config.devices=3"], "config.batch_size is 8, which 3 devices cannot share evenly; "),
        (
            ["--config.replay.size=36"],
            "config.replay.size is 36, which 8 devices cannot share evenly; choose a multiple of "
            "8, or config.devices=4",
        ),
        (["--config.devices=-1"], "config.devices is -1; it must be at least 0"),
    ],
)
def test_devices_that_cannot_share_a_run_are_refused_with_the_numbers(tmp_path, arguments, said):
    done = main(tmp_path / "run", *arguments)
    assert done.returncode == 2
    assert f"error: {said}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
