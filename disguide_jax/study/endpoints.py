"""Benchmarks of endpoints: the same victim inside JAX, as a function, a file and a service."""

import contextlib
import copy
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import jax
import numpy as np

from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.run import extraction, paying, program
from disguide_jax.run.compiled import compiled
from disguide_jax.run.program import Program
from disguide_jax.study import measure
from disguide_jax.study.launch import ROOT
from disguide_jax.study.measure import Row
from disguide_jax.victims import export, network, serve
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.host import Function

CONNECTIONS = (1, 8)
IMAGES_PER_REQUEST = 8


def bench_endpoints(config: Config, seconds: float) -> Iterator[Row]:
    """Rounds of a configuration whose victim is a weight file, asked in every way.

    In each the ledger is kept as in a run. The service is a process of its own on this machine.

    Raises:
      UserError: the weights are in no file.
    """
    config = copy.deepcopy(config)
    config.query_dtype, config.rounds_per_call = "uint8", 1
    weights, dataset = config.victim.weights, config.dataset
    if weights in ("", network.RANDOM_WEIGHTS):
        raise UserError(
            f"config.victim.weights is {weights!r}; suite endpoint serves what is in a file"
        )
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "victim.onnx"
        export.export(weights, file, dataset, config.data_dir)
        address = stack.enter_context(serving(weights, dataset, config.data_dir))
        inside = program.build(config)
        runs = {"in JAX": inside, "python": as_function(inside, weights)}
        runs["onnx"] = asking(config, f"onnx:{file}")
        for num in CONNECTIONS:
            runs[f"http, {num} at a time"] = asking(config, address, concurrency=num)
        cases = {
            name: stack.enter_context(playing(run, folder / str(i)))
            for i, (name, run) in enumerate(runs.items())
        }
        for name, turns in measure.take_turns(cases, seconds).items():
            sent = inside.stages[-1].queries / float(np.median(turns))
            yield measure.make_row(name, turns, queries_per_second=sent)


def as_function(inside: Program, weights: str) -> Program:
    """The same run with its victim as a function of NumPy arrays."""
    config = asking_config(inside.config, "python:the.same:network")
    contract = Contract(inside.kit.task.num_classes, hard_labels=config.labels == "hard")
    model = serve.load(weights, config.dataset, config.data_dir)
    return inside._replace(config=config, victim=Function("python", model.classify, contract))


def asking(config: Config, endpoint: str, *, concurrency: int = 0) -> Program:
    """The same run with an endpoint; a service gets so many requests at a time."""
    config = asking_config(config, endpoint)
    if concurrency:
        config.victim.concurrency = concurrency
        config.victim.images_per_request = IMAGES_PER_REQUEST
    return program.build(config)


def asking_config(config: Config, endpoint: str) -> Config:
    """A configuration with an endpoint in place of weights."""
    config = copy.deepcopy(config)
    config.victim.weights, config.victim.endpoint = "", endpoint
    config.victim.mean = config.victim.std = ()
    return config


@contextlib.contextmanager
def playing(run: Program, workdir: pathlib.Path) -> Iterator[Callable[[], object]]:
    """A function that plays one round of a run with an empty ledger."""
    with paying.opened(run, workdir, [], []) as paid:
        functions = compiled(run)
        (call,) = extraction.make_calls(run, functions, paid, 0).values()
        state = functions.start(jax.random.key(run.config.seed))

        def play() -> object:
            nonlocal state
            state, *_ = call(state, 1)
            return state

        yield play


@contextlib.contextmanager
def serving(weights: str, dataset: str, data_dir: str) -> Iterator[str]:
    """The address of a service of the victim, a process of its own.

    Raises:
      UserError: it does not start.
    """
    command = [sys.executable, str(ROOT / "scripts/serve_victim.py"), "--port=0"]
    command += [f"--weights={weights}", f"--dataset={dataset}", f"--data_dir={data_dir}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            said = server.stdout.readline() if server.stdout else ""
            found = re.search(r"http://\S+", said)
            if not found:
                raise UserError(f"scripts/serve_victim.py does not start: {said.strip()}")
            yield found[0]
        finally:
            server.terminate()
