"""Runs that are really killed, again and again, end as a run that is not."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

NUM_KILLS = 20
COMMAND = [
    *(sys.executable, "-m", "disguide_jax.main", "--workdir=w"),
    f"--config={ROOT / 'configs/digits_hard.py'}:smoke",
    "--config.query_budget=4000",  # 500 rounds
    "--config.log_every_queries=40",
    "--config.evaluate_every_queries=400",
    "--config.checkpoint_every_queries=72",
    "--config.replay.size=100",  # wraps around within a batch
]


def start(folder: pathlib.Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    with (folder / "output").open("ab") as output:
        return subprocess.Popen(
            COMMAND,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )


def outcome(folder: pathlib.Path) -> dict:
    """All that a run leaves but times, and the checkpoints that it no longer needs."""
    workdir = folder / "w"
    summary = json.loads((workdir / "summary.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for values in (summary, *lines):
        for name in list(values):
            if name in ("wall_seconds", "queries_per_second") or name.startswith("time/"):
                del values[name]
    files = {
        str(path.relative_to(workdir)): path.read_bytes()
        for folder in ("samples", "clones")
        for path in (workdir / folder).iterdir()
    }
    return {"summary": summary, "lines": lines, "files": files}


def num_lines(folder: pathlib.Path) -> int:
    path = folder / "w/metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def play_and_kill(process: subprocess.Popen, folder: pathlib.Path, chance: random.Random) -> None:
    """Kills the process at a random moment, unless it ends before."""
    if chance.random() < 0.25:  # anywhere: while it starts, restores, compiles or plays
        time.sleep(chance.uniform(0, 5))
    else:  # while it plays and saves, and so that it gets on
        seen, more = num_lines(folder), chance.randint(1, 5)
        while process.poll() is None and abs(num_lines(folder) - seen) < more:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
    process.kill()


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_one_that_never_was(tmp_path):
    whole = tmp_path / "whole"
    assert start(whole).wait() == 0, (whole / "output").read_text()

    chance, num_kills, num_runs = random.Random(0), 0, 1
    while num_kills < NUM_KILLS:
        folder = tmp_path / f"killed {num_runs}"
        process = start(folder)
        play_and_kill(process, folder, chance)
        status, output = process.wait(), (folder / "output").read_text()
        assert status in (0, -signal.SIGKILL), output
        num_kills += status != 0
        if status == 0 or num_kills == NUM_KILLS:  # let this one end
            assert start(folder).wait() == 0, (folder / "output").read_text()
            assert outcome(folder) == outcome(whole)
            assert "damaged" not in (folder / "output").read_text()
            num_runs += 1
