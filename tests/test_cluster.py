"""Studies on a cluster: what is submitted, what is under way, what is saved and goes on."""

import os
import signal
import sys
import time

import fake_slurm
import pytest
from conftest import ROOT

from disguide_jax.errors import UserError
from disguide_jax.run import signals
from disguide_jax.study import cluster, reproduce, results
from disguide_jax.study.launch import Run, Task
from disguide_jax.study.results import Cell

# a program that is saved when it is asked to end, and has results the second time
RUN = """
import pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1])
def save(signum, frame):
    (workdir / "saved").touch()
    sys.exit(128 + signum)
for signum in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(signum, save)
if not (workdir / "saved").exists():
    (workdir / "begun").touch()
    time.sleep(60)
(workdir / "samples").mkdir()
(workdir / "samples" / "1.png").touch()
(workdir / "metrics.jsonl").touch()
(workdir / "summary.json").write_text('{"soft_vote_accuracy": 0.5}')
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster of one machine; returns the folder with the states of its jobs."""
    pytest.importorskip("submitit", reason="needs the extra `cluster`")
    folder = tmp_path / "slurm"
    fake_slurm.install(folder)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    yield folder
    for state in folder.glob("*.state"):  # of what a failed test has left
        state.unlink(missing_ok=True)


def launcher(folder, *parameters, jobs=None):
    parameters = ["timeout_min=60", *parameters]
    return cluster.choose("slurm", jobs=jobs, slurm=parameters, folder=folder / "jobs")


def wait_for(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def tasks_of(folder, num):
    for i in range(num):
        (folder / f"w{i}").mkdir()
    return [
        Task(
            f"run {i}",
            (sys.executable, "-c", RUN, str(folder / f"w{i}")),
            folder / f"w{i}",
            (Run(f"run {i}", folder / f"w{i}", folder / "results" / str(i)),),
        )
        for i in range(num)
    ]


def pid_of(slurm, task):
    return int((slurm / f"{task}.pid").read_text())


def test_one_array_is_submitted_and_nothing_twice(slurm, tmp_path, capsys):
    tasks = tasks_of(tmp_path, 3)
    launch = launcher(tmp_path, "partition=gpu", "gpus_per_node=1", jobs=1)
    assert not launch(tasks, dry_run=True)
    said = capsys.readouterr().out
    assert said.startswith("3 would be submitted as one job, at most 1 at a time, with timeout_min")
    assert not list(slurm.glob("*.sh"))
    assert not launch(tasks)
    assert "3 submitted as job 1; the same command again" in capsys.readouterr().out
    script = (slurm / "1.sh").read_text()
    for line in ("array=0-2%1", "partition=gpu", "gpus-per-node=1", "time=60", "requeue"):
        assert f"#SBATCH --{line}\n" in script
    wait_for((tmp_path / "w0" / "begun").exists)
    assert not launcher(tmp_path)(tasks)
    assert sorted(capsys.readouterr().out.splitlines()) == ["1 running", "2 pending"]
    assert len(list(slurm.glob("*.sh"))) == 1
    assert not (tmp_path / "w1" / "begun").exists(), "--jobs bounds how many run at a time"
    for state in slurm.glob("1_[12].state"):
        state.unlink()
    os.kill(pid_of(slurm, "1_0"), signal.SIGTERM)
    wait_for(lambda: not list(slurm.glob("*.state")))


def test_a_preempted_run_is_saved_and_goes_on_by_itself(slurm, tmp_path, capsys):
    tasks = tasks_of(tmp_path, 2)
    launcher(tmp_path)(tasks)
    for i in range(2):
        wait_for((tmp_path / f"w{i}" / "begun").exists)
        os.kill(pid_of(slurm, f"1_{i}"), signal.SIGUSR2)
    wait_for(lambda: not list(slurm.glob("*.state")))
    assert all(task.has_results() for task in tasks)
    assert all((tmp_path / f"results/{i}/samples.png").exists() for i in range(2))
    assert launcher(tmp_path)(tasks), "all have finished"
    assert len(list(slurm.glob("*.sh"))) == 1


def test_a_cancelled_run_is_saved_and_goes_on_with_the_same_command(slurm, tmp_path, capsys):
    (task,) = tasks_of(tmp_path, 1)
    launcher(tmp_path)([task])
    wait_for((tmp_path / "w0" / "begun").exists)
    os.kill(pid_of(slurm, "1"), signal.SIGTERM)
    wait_for(lambda: not list(slurm.glob("*.state")))
    assert (tmp_path / "w0" / "saved").exists()
    assert not task.has_results()
    capsys.readouterr()
    launcher(tmp_path)([task])
    said = capsys.readouterr().out
    assert "ended before they had finished, and go on:\n  run 0, job 1: " in said
    wait_for(task.has_results)
    assert (tmp_path / "w0" / "job.txt").read_text() == "2"


def test_victims_come_before_the_runs(slurm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = {"made_by": "python none.py --config configs/victim_c10_r34.py", "data_dir": ""}
    monkeypatch.setattr(reproduce.flops, "least_hours", lambda *_: 1.0)
    ready = reproduce.prepare_victims(
        {"victims/none.safetensors": told["made_by"]},
        launcher(tmp_path),
        data_dir="",
        folder=tmp_path / "logs",
        dry_run=False,
    )
    assert not ready
    assert "1 submitted as job 1" in capsys.readouterr().out
    wait_for(lambda: not list(slurm.glob("*.state")))
    assert "none.py" in (tmp_path / "logs/victim_c10_r34.py/output.txt").read_text()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (["partition=gpu"], "say how many minutes"),
        (["timeout_min=1440,partition=gpu"], "each parameter by itself"),
        (["timeout_min=0"], "timeout_min is 0"),
        (["timeout_min=5", "partition"], "--slurm partition: write KEY=VALUE"),
        (["timeout_min=5", "array_parallelism=2"], "--jobs says it"),
        (["timeout_min=5", "nodes=2"], "a run is one process"),
    ],
)
def test_mistakes_in_parameters_are_named(parameters, said):
    with pytest.raises(UserError, match=said):
        cluster.read_parameters(parameters)


def test_values_are_as_in_json_or_text():
    pairs = ["timeout_min=5", "exclude=a,b", 'setup=["module load x"]', "exclusive=true", "qos=a=b"]
    assert cluster.read_parameters(pairs) == {
        "timeout_min": 5,
        "exclude": "a,b",
        "setup": ["module load x"],
        "exclusive": True,
        "qos": "a=b",
    }


def test_what_slurm_or_submitit_refuse_is_one_message(slurm, tmp_path):
    with pytest.raises(UserError, match=r"--slurm timeout_min=60 partitoin=gpu: .*partitoin"):
        launcher(tmp_path, "partitoin=gpu")
    with pytest.raises(UserError, match="--jobs is 0"):
        launcher(tmp_path, jobs=0)
    with pytest.raises(UserError, match=r"refused .*invalid partition specified: none"):
        launcher(tmp_path, "partition=none")(tasks_of(tmp_path, 2))
    (slurm / "squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    (tmp_path / "w0" / "job.txt").write_text("7")
    task = Task("a", ("false",), tmp_path / "w0")
    with pytest.raises(UserError, match="does not say what is under way: no controller"):
        launcher(tmp_path)([task])


def test_what_is_not_here_is_named(tmp_path, monkeypatch):
    options = {"jobs": None, "folder": tmp_path}
    with pytest.raises(UserError, match="only for --launcher slurm"):
        cluster.choose("local", slurm=["partition=gpu"], **options)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"needs submitit: pip install 'disguide_jax\[cluster\]'"):
        cluster.choose("slurm", slurm=["timeout_min=5"], **options)


def test_a_machine_without_slurm_is_named(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no Slurm here, sbatch, squeue, srun, scontrol not found"):
        launcher(tmp_path)


@pytest.mark.slow
def test_a_study_is_submitted_killed_repeated_and_finished(slurm, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [Cell("digits", "digits_soft:smoke")]
    options = {
        "results": tmp_path / "results",
        "workdirs": tmp_path / "w",
        "least_hours": lambda _: 0.0,
    }

    def run():
        return results.run_missing(cells, [0, 1], launcher=launcher(tmp_path), **options)

    assert not run()
    wait_for((slurm / "1_1.pid").exists)
    os.kill(pid_of(slurm, "1_1"), signal.SIGKILL)
    deadline = time.monotonic() + 300
    while not run():
        assert time.monotonic() < deadline
        time.sleep(1)
    assert results.load(tmp_path / "results", cells[0], 1).summary["queries"] == 40
    assert "2 of 2 runs have finished\n" in capsys.readouterr().out
    assert len(list(slurm.glob("*.sh"))) == 2


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2])
def test_what_a_cluster_announces_asks_to_stop_however_often_it_is_said(signum):
    with signals.stop_requests() as stop:
        for each in (signum, signum, signal.SIGHUP):
            signal.raise_signal(each)
    assert stop == [signum, signal.SIGHUP]
    with signals.stop_requests() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signum)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the second stops at once"
    assert stop == [signal.SIGTERM, signum]
