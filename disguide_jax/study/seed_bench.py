"""A benchmark of runs that differ in their seeds: in one process, and in one for each."""

import concurrent.futures
import copy
import pathlib
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.study import measure
from disguide_jax.study.launch import ROOT
from disguide_jax.study.measure import Row

SEEDS = (0, 1, 2, 3, 4)
FILE = """import pathlib
import pickle


def get_config():
    return pickle.loads(pathlib.Path(__file__).with_suffix(".pickle").read_bytes())
"""


def bench_seeds(config: Config, seconds: float) -> Iterator[Row]:
    """Whole runs from start to summary, with each of `config.seeds`, or of SEEDS.

    In one process; in a process for each, one after the other; and as many of these side by side
    as there are cores. All of them find what was compiled before.

    Raises:
      UserError: a run failed.
    """
    config = copy.deepcopy(config)
    seeds, config.seeds = config.seeds or SEEDS, ()
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "measured.py")
        file.write_text(FILE)
        file.with_suffix(".pickle").write_bytes(pickle.dumps(config))

        def play(*arguments: str) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as workdir:
                command = [sys.executable, "-m", "disguide_jax.main", f"--config={file}"]
                command += [*arguments, f"--workdir={workdir}/run"]
                done = subprocess.run(
                    command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
                )
            if done.returncode:
                raise UserError(f"the run that is measured fails: {done.stderr.strip()}")

        def side_by_side(num: int) -> None:
            with concurrent.futures.ThreadPoolExecutor(num) as pool:
                list(pool.map(play, [f"--config.seed={seed}" for seed in seeds]))

        cores = measure.hardware()["cores"] or 1
        cases: dict[str, Callable[[], None]] = {
            "one_process": lambda: play(f"--config.seeds={','.join(map(str, seeds))}"),
            "one_after_the_other": lambda: side_by_side(1),
            "side_by_side": lambda: side_by_side(cores),
        }
        play(f"--config.seed={seeds[0]}")  # compiles
        times: dict[str, list[float]] = {name: [] for name in cases}
        stop = time.perf_counter() + seconds
        while not times["side_by_side"] or time.perf_counter() < stop:
            for name, case in cases.items():
                start = time.perf_counter()
                case()
                times[name].append(time.perf_counter() - start)
    for name, turns in times.items():
        ratio = float(np.median(turns)) / float(np.median(times["one_process"]))
        more = {"seeds": len(seeds), "queries_of_each": config.query_budget}
        yield measure.make_row(name, np.array(turns), ratio_to_one_process=ratio, **more)
