"""Runs that are interrupted end as runs that are not."""

import errno
import json
import os
import pathlib
import signal
import sys

import pytest
from conftest import ROOT

from disguide_jax import main
from disguide_jax.config import Config, to_dict
from disguide_jax.errors import UserError
from disguide_jax.files import workdir
from disguide_jax.run import recorder

ARGV = ["disguide_jax.main", f"--config={ROOT / 'configs/digits_hard.py'}:smoke", "--workdir=w"]


def start(folder: pathlib.Path, monkeypatch, *arguments: str) -> int:
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [*ARGV, *arguments])
    with pytest.raises(SystemExit) as exit_:
        main.run()
    return exit_.value.code or 0


def result(folder: pathlib.Path) -> tuple[dict, list[dict]]:
    """Summary and log without times."""
    summary = json.loads((folder / "w/summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "w/metrics.jsonl").read_text().splitlines()]
    for values in (summary, *lines):
        for name in list(values):
            if name in ("wall_seconds", "queries_per_second") or name.startswith("time/"):
                del values[name]
    return summary, lines


def at_queries(monkeypatch, queries: int, event) -> None:
    """Lets `event` happen when the line of so many queries has been written."""
    write = recorder.MetricsLog.write

    def write_and_do(self, at: int, metrics: dict) -> None:
        write(self, at, metrics)
        if at == queries:
            event()

    monkeypatch.setattr(recorder.MetricsLog, "write", write_and_do)


class Crash(BaseException):
    """What no part of the program expects."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[dict, list[dict]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("uninterrupted")
        assert start(folder, monkeypatch) == 0
    return result(folder)


@pytest.mark.parametrize(
    ("signum", "queries"),
    [pytest.param(signal.SIGTERM, 8, marks=pytest.mark.slow), (signal.SIGINT, 24)],
)
def test_a_signal_saves_and_the_same_command_ends_with_the_same_clones_and_log(
    tmp_path, monkeypatch, capsys, uninterrupted, signum, queries
):
    with monkeypatch.context() as patch:
        at_queries(patch, queries, lambda: os.kill(os.getpid(), signum))
        assert start(tmp_path, patch) == 128 + signum
    out = capsys.readouterr().out
    assert f"Stopped after {queries} queries" in out
    assert "python -m disguide_jax.main --config" in out
    assert not (tmp_path / "w/summary.json").exists()
    assert start(tmp_path, monkeypatch) == 0
    assert f"continues after {queries} queries" in capsys.readouterr().out
    assert result(tmp_path) == uninterrupted


@pytest.mark.slow
def test_a_crash_between_checkpoints_loses_nothing_but_time(
    tmp_path, monkeypatch, capsys, uninterrupted
):
    """Lines and pictures written after the checkpoint are written again, not twice."""

    def crash() -> None:
        raise Crash

    with monkeypatch.context() as patch:
        at_queries(patch, 24, crash)  # the checkpoint is of 16
        patch.chdir(tmp_path)
        patch.setattr(sys, "argv", ARGV)
        with pytest.raises(Crash):
            main.run()
    assert start(tmp_path, monkeypatch, "--config.checkpoint_every_queries=8") == 0
    assert "continues after 16 queries" in capsys.readouterr().out
    summary, lines = result(tmp_path)
    assert summary["config"].pop("checkpoint_every_queries") == 8
    expected = dict(uninterrupted[0], config=dict(uninterrupted[0]["config"]))
    del expected["config"]["checkpoint_every_queries"]
    assert (summary, lines) == (expected, uninterrupted[1])


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_message_and_the_same_command_goes_on(
    tmp_path, monkeypatch, capsys, uninterrupted
):
    def no_room() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        at_queries(patch, 24, no_room)
        assert start(tmp_path, patch) == 2
    error = capsys.readouterr().err
    assert "error: w: cannot be written: No space left on device" in error
    assert "Traceback" not in error
    assert start(tmp_path, monkeypatch) == 0
    assert "continues after 16 queries" in capsys.readouterr().out
    assert result(tmp_path) == uninterrupted


def test_a_run_without_git_knows_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert workdir.provenance()["git_commit"] is None


@pytest.mark.slow
def test_a_larger_budget_continues_with_extend(tmp_path, monkeypatch, capsys):
    assert start(tmp_path, monkeypatch, "--config.query_budget=16") == 0
    assert start(tmp_path, monkeypatch, "--config.query_budget=32", "--extend") == 0
    assert "schedule is computed anew" in capsys.readouterr().out
    summary, lines = result(tmp_path)
    assert summary["queries"] == summary["query_budget"] == 32
    assert [line["queries"] for line in lines] == [8, 16, 24, 32]


def test_a_second_process_on_one_workdir_is_refused(tmp_path, monkeypatch, capsys):
    from disguide_jax.files.workdir import lock

    (tmp_path / "w").mkdir()
    with lock(tmp_path / "w"):
        assert start(tmp_path, monkeypatch) == 2
    assert "in use by another process" in capsys.readouterr().err


def test_differing_keys_are_listed_but_for_those_that_cannot_change_the_result():
    def config(**changes) -> Config:
        return Config(name="a", dataset="digits", labels="hard", query_budget=9, **changes)

    before = json.loads(json.dumps(to_dict(config())))
    folder = pathlib.Path("w")
    workdir.refuse_other_config(before, config(log_every_queries=1), folder, extend=False)
    with pytest.raises(UserError) as error:
        workdir.refuse_other_config(before, config(seed=3, batch_size=2), folder, extend=True)
    assert "config.seed: 0, now 3" in str(error.value)
    assert "config.batch_size: 256, now 2" in str(error.value)
    assert "log_every" not in str(error.value)
