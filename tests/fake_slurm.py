"""A cluster of one machine: sbatch, squeue, srun and scontrol, for the tests of the launcher."""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import subprocess
import sys

PROGRAMS = ("sbatch", "squeue", "srun", "scontrol")


def install(folder: pathlib.Path) -> None:
    """Writes the programs, whose jobs have their states beside them."""
    folder.mkdir()
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(0o755)


def sbatch(here: pathlib.Path, script: str) -> None:
    if "partition=none" in pathlib.Path(script).read_text():
        sys.exit("sbatch: error: invalid partition specified: none")
    number = len(list(here.glob("*.sh"))) + 1
    kept = here / f"{number}.sh"
    kept.write_text(pathlib.Path(script).read_text())
    array = re.search(r"--array=0-(\d+)%(\d+)", kept.read_text())
    tasks = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [f"{number}"]
    for task in tasks:
        (here / f"{task}.state").write_text("PENDING")
    most = array[2] if array else "1"
    command = [sys.executable, __file__, "play", str(kept), most, *tasks]
    nowhere = subprocess.DEVNULL  # or else who called us waits for its end
    subprocess.Popen(command, start_new_session=True, stdout=nowhere, stderr=nowhere)
    print(f"Submitted batch job {number}")


def play(here: pathlib.Path, script: str, most: str, *tasks: str) -> None:
    def one(task: str) -> None:
        number, _, index = task.partition("_")
        names = {"SLURM_JOB_ID": number, "FAKE_TASK": task}
        if index:
            names |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
        state, again = here / f"{task}.state", here / f"{task}.requeue"
        while state.exists():
            state.write_text("RUNNING")
            subprocess.run(["bash", script], env=os.environ | names, stderr=subprocess.DEVNULL)
            if not again.exists():
                state.unlink()
            again.unlink(missing_ok=True)

    with concurrent.futures.ThreadPoolExecutor(int(most)) as pool:
        list(pool.map(one, tasks))


def squeue(here: pathlib.Path, *options: str) -> None:
    assert {"--me", "--array", "--noheader", "--format=%i %T"} == set(options)
    for state in sorted(here.glob("*.state")):
        with contextlib.suppress(FileNotFoundError):  # it ends
            print(state.stem, state.read_text())


def srun(here: pathlib.Path, *words: str) -> None:
    task = os.environ["FAKE_TASK"]
    (here / f"{task}.pid").write_text(str(os.getpid()))
    start = words.index("--error") + 2
    for stream, option in ((1, "--output"), (2, "--error")):
        path = words[words.index(option) + 1].replace("%A_%a", task).replace("%j", task)
        log = os.open(path.replace("%t", "0"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, stream)
    os.execvp(words[start], words[start:])


def scontrol(here: pathlib.Path, verb: str, task: str) -> None:
    assert verb == "requeue"
    (here / f"{task}.requeue").touch()


if __name__ == "__main__":
    programs = {"sbatch": sbatch, "squeue": squeue, "srun": srun, "scontrol": scontrol}
    programs["play"] = play
    programs[sys.argv[1]](pathlib.Path(os.environ["FAKE_SLURM"]), *sys.argv[2:])
