"""The same extraction with several seeds: one process, one program, a workdir for each.

Each is a run of its own, which can be continued by itself or with others. Seeds go to different
devices first; those that share a device are played one after the other where that is faster, by
what the first of them has compiled, or else by one program at once.
"""

import concurrent.futures
import copy
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from disguide_jax.config import Config, validate
from disguide_jax.core import backend, mesh
from disguide_jax.errors import UserError
from disguide_jax.run import devices, extraction, processes, signals, together
from disguide_jax.run import program as programs
from disguide_jax.run.compiled import Compiled, FunctionsOf, compiled
from disguide_jax.run.extraction import Order
from disguide_jax.run.program import Program
from disguide_jax.run.together import Ended


def train_and_evaluate(
    config: Config,
    workdir: pathlib.Path,
    *,
    extend: bool = False,
    functions_of: FunctionsOf = compiled,
) -> list[dict[str, Any]]:
    """Runs an extraction with each of `config.seeds`, or continues what `workdir` holds of them.

    Args:
      config: of the runs.
      workdir: that of seed N is its folder `seedN`, and holds what a run of this seed leaves.
      extend: accept a larger budget than a workdir was started with.
      functions_of: `compiled`, or one that shares them, for runs that are not played together.

    Returns:
      What each `summary.json` holds, in the order of the seeds.

    Raises:
      UserError: a mistake in the configuration; or runs failed, and the others have ended.
      Stopped: a signal asked for it; what has begun is saved.
    """
    validate(config)
    processes.refuse_seeds(config)
    shares = _share_out(config)
    orders = [
        [_look_up(config, seed, len(share), workdir, extend=extend) for seed in members]
        for share, members in shares
    ]
    with signals.stop_requests() as stop:

        def play(share: int) -> Ended:
            with mesh.use(shares[share][0]):
                return _play(orders[share], stop, functions_of, extend=extend)

        with concurrent.futures.ThreadPoolExecutor(len(shares)) as pool:
            # A single one stays in this thread, with its context.
            ended = list((pool.map if len(shares) > 1 else map)(play, range(len(shares))))
    summaries = {path: found for each in ended for path, found in each.summaries.items()}
    failures = {path: found for each in ended for path, found in each.failures.items()}
    paths = {order.config.seed: order.workdir for share in orders for order in share}
    ordered = [paths[seed] for seed in config.seeds]
    if failures:
        said = [f"{path}: {failures[path]}" for path in ordered if path in failures]
        raise UserError("\n".join(said + ["The others have ended."] * bool(summaries)))
    _report([summaries[path] for path in ordered])
    return [summaries[path] for path in ordered]


def _share_out(config: Config) -> list[tuple[list[jax.Device], list[int]]]:
    """Devices, and the seeds that are played on them: as many on each as can be."""
    there, of_seeds = jax.devices()[: devices.number(config)], config.seeds
    if config.victim.endpoint:  # which is asked by one run at a time
        return [(there, list(of_seeds))]
    num, each = min(len(there), len(of_seeds)), max(1, len(there) // len(of_seeds))
    return [(there[i * each : (i + 1) * each], list(of_seeds[i::num])) for i in range(num)]


def _look_up(
    config: Config, seed: int, num_devices: int, workdir: pathlib.Path, *, extend: bool
) -> Order:
    config = copy.deepcopy(config)
    config.seed, config.seeds, config.devices = seed, (), num_devices
    label = f"seed {seed}"
    return extraction.look_up(config, workdir / f"seed{seed}", extend=extend, label=label)


def _report(summaries: Sequence[dict[str, Any]]) -> None:
    """Says how well all seeds did, in one line."""
    known = all(summary["soft_vote_accuracy"] is not None for summary in summaries)
    name, key = ("soft vote", "soft_vote_accuracy") if known else ("fidelity", "fidelity")
    values = [summary[key] for summary in summaries]
    each = ", ".join(f"{value:.4f}" for value in values)
    print(f"{name:<10} {each}; mean {np.mean(values):.4f}", flush=True)


def _play(
    orders: Sequence[Order], stop: Sequence[int], functions_of: FunctionsOf, *, extend: bool
) -> Ended:
    """Runs whose rounds are left, on the devices in use."""
    ended = Ended({}, {})
    left = []
    for order in orders:
        summary = order.finished()
        if summary is None:
            left.append(order)
        else:
            ended.summaries[order.workdir] = summary
    if not left:
        return ended
    if left[0].config.victim.endpoint:
        _one_after_another(left, functions_of, ended, extend=extend)
    elif backend.seeds_go_together() and len(left) > 1:
        together.play(left, stop, ended, extend=extend)
    else:
        _one_program(left, stop, functions_of, ended)
    return ended


def _one_after_another(
    orders: Sequence[Order], functions_of: FunctionsOf, ended: Ended, *, extend: bool
) -> None:
    """Runs against an endpoint, each with a connection and a ledger of its own."""
    for order in orders:
        try:
            summary = extraction.train_and_evaluate(
                order.config, order.workdir, extend=extend, functions_of=functions_of
            )
            ended.summaries[order.workdir] = summary
        except UserError as error:
            ended.fail(order, error)


def _one_program(
    orders: Sequence[Order], stop: Sequence[int], functions_of: FunctionsOf, ended: Ended
) -> None:
    """Runs one after the other, by what the first of them has compiled."""
    program: Program | None = None
    functions: Compiled | None = None
    for order in orders:
        try:
            shared = extraction.with_seed_of(order, program) if program else None
            program = shared or programs.build(order.config)
            functions = functions if shared and functions else functions_of(program)
            ended.summaries[order.workdir] = extraction.run(program, functions, order, stop)
        except UserError as error:
            ended.fail(order, error)
