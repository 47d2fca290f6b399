"""One run in two processes, each of two devices: what one process of four does, come what may."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from disguide_jax.methods import METHODS

SECONDS = 150  # at most, for what takes a few where nothing else runs
TO_ROUNDING = 1e-9  # in float64, over 20 rounds
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
LOST = "error: another process of this run has ended; "


def start(*command, devices=2, **environment):
    """A process that sees so many devices."""
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | {"XLA_FLAGS": f"{FLAGS}{devices}"} | path | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(started):
    """The statuses of processes and what they said, (status, stdout, stderr) each."""
    try:
        said = [process.communicate(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *both) for process, both in zip(started, said, strict=True)]


def free_port(*, of=range(1)):
    """A port that nobody listens at, of some or any."""
    for port in of:
        with socket.socket() as tried:
            try:
                tried.bind(("", port))
            except OSError:
                continue
            return tried.getsockname()[1]
    raise AssertionError("no port is free")


def main(workdir, *arguments, **options):
    """The program with a smoke configuration whose batch and replay four devices can share."""
    config = "--config=configs/digits_hard.py:smoke"
    return start(
        *("-m", "disguide_jax.main", config, "--config.replay.size=32", f"--workdir={workdir}"),
        *arguments,
        **options,
    )


def mains(workdir, *arguments, each=((), ())):
    """Two of them in one run, and what only one is told."""
    port = free_port()
    return [
        main(
            workdir,
            *(f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={i}"),
            *arguments,
            *own,
        )
        for i, own in enumerate(each)
    ]


def step(folder):
    """Two processes that Slurm seems to have started."""
    last = 2**16 - 2**12  # from which JAX counts ports, by the job's number
    job = free_port(of=range(last + os.getpid() % 2**11, 2**16)) - last
    shared = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
    }
    return [
        start("tests/on_machines.py", folder, SLURM_PROCID=str(i), SLURM_LOCALID=str(i), **shared)
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_take_over_what_it_has_saved(tmp_path):
    for process in ends(step(tmp_path)):
        assert process == (0, "", "")
    ((status, said, errors),) = ends([start("tests/on_machines.py", tmp_path, devices=4)])
    assert status == 0, errors
    played, restored = map(float, said.split())
    assert 0 < played < TO_ROUNDING  # other sums than one process makes
    assert restored == 0
    first, second = ends(step(tmp_path))
    assert first[0] == second[0] == 0, first
    played, restored = map(float, first[1].split())
    assert played == restored == 0
    assert second[1:] == ("", "")


@pytest.mark.slow
def test_methods_of_which_devices_meet_in_loops_say_so():
    ((status, said, errors),) = ends([start("tests/on_loops.py", devices=4)])
    assert status == 0, errors
    assert said.split() == [name for name, m in METHODS.items() if m.devices_meet_in_loops]


def wait_for(process, text):
    """Reads what a process says up to a line with some text."""
    lines = []
    limit = threading.Timer(SECONDS, process.kill)
    limit.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if text in line:
                return
    finally:
        limit.cancel()
    raise AssertionError(f"{text!r} is not in {lines}: {process.stderr.read()}")


@pytest.mark.slow
def test_a_run_that_lost_a_process_goes_on_and_stops_and_goes_on(tmp_path):
    arguments = (
        "--config.query_budget=800",
        "--config.log_every_queries=8",
        "--config.checkpoint_every_queries=16",
    )
    first, second = mains(tmp_path, *arguments)
    wait_for(first, "80 of 800 queries")
    second.kill()
    then = time.monotonic()
    (status, _, said), _ = ends([first, second])
    assert status == 2, said
    assert said.startswith(LOST)
    assert said.count("\n") == 1
    assert time.monotonic() - then < 30

    first, second = mains(tmp_path, *arguments)
    wait_for(first, "continues after")
    wait_for(first, "queries/s")
    second.send_signal(signal.SIGTERM)  # only one of them is asked
    for status, _, said in (stopped := ends([first, second])):
        assert (status, said) == (128 + signal.SIGTERM, "")
    assert "everything is saved" in stopped[0][1]
    assert stopped[1][1] == ""
    assert not (tmp_path / "summary.json").exists()

    ((status, output, said),) = ends([main(tmp_path, *arguments, devices=4)])
    assert status == 0, said
    assert "continues after" in output
    assert json.loads((tmp_path / "summary.json").read_text())["queries"] == 800
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["queries"] for line in lines] == list(range(8, 801, 8))


@pytest.mark.slow
def test_processes_end_with_one_message_when_the_first_of_them_is_lost():
    code = (
        "import time; from disguide_jax.core import machines\n"
        "from disguide_jax.run import processes as p\n"
        f"with p.joined(p.Told('localhost:{free_port()}', 2, %d)):\n"
        "    machines.meet(); print('met', flush=True); time.sleep(100)  # computing alone"
    )
    first, second = (start("-c", code % i) for i in range(2))
    wait_for(first, "met")
    first.kill()
    _, (status, output, errors) = ends([first, second])
    assert (status, output) == (2, "")
    assert errors.startswith(LOST)
    assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("each", "said"),
    [
        ((("--config.seed=0",), ("--config.seed=1",)), "process 1 of 2 has another configuration"),
        (2 * (("--config.devices=2",),), "config.devices is 2; one run in 2 processes takes all 4"),
        (
            2 * (("--config.seeds=0,1",),),
            "config.seeds is 0,1; one run in several processes has one",
        ),
        (2 * (("--config.method=maze", "--config.labels=soft"),), "config.method is 'maze', whose"),
    ],
)
def test_processes_that_cannot_play_one_run_are_told_so(tmp_path, each, said):
    for status, output, errors in ends(mains(tmp_path / "run", each=each)):
        assert (status, output) == (2, "")
        assert errors.startswith(f"error: {said}")
        assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_finds_no_others_says_so_after_a_while(tmp_path):
    code = (
        "from disguide_jax.run import processes as p; p.JOINING_SECONDS = 2\n"
        f"with p.joined(p.Told('localhost:{free_port()}', 2, %d)): print('joined')"
    )
    for i in range(2):
        ((status, output, errors),) = ends([start("-c", code % i)])
        assert (status, output) == (2, "")
        assert "error: the processes of this run did not find each other at localhost:" in errors
        assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--process_id=1", "--num_processes=2"], "--coordinator is missing; one run in several"),
        (["--coordinator=here:80"], "--num_processes is missing; one run in several processes"),
        (["--coordinator=here", "--num_processes=2", "--process_id=0"], "--coordinator is 'here'"),
        (
            ["--coordinator=here:80", "--num_processes=2", "--process_id=2"],
            "--process_id is 2; of 2 processes it must be from 0 to 1",
        ),
        (["--coordinator=a:1", "--num_processes=0", "--process_id=0"], "--num_processes is 0; it"),
    ],
)
def test_wrong_flags_are_one_message(arguments, said, tmp_path, monkeypatch, capsys):
    from disguide_jax import main as program
    from disguide_jax.errors import exit_status

    config = f"--config={ROOT / 'configs/digits_hard.py'}:smoke"
    monkeypatch.setattr(sys, "argv", ["main", config, f"--workdir={tmp_path}", *arguments])
    assert exit_status(program.main) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {said}")
    assert errors.count("\n") == 1
