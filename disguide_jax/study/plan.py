"""What a configuration would need of a GPU that is not there.

The round is compiled for its description: that tells memory and traffic. Nothing is run and
nothing measured. cuDNN's algorithms and the fastest tiles are chosen on a device only, so times
are lower bounds: all bytes at the bandwidth that is reached, or all products at the speed that is
reached, whichever takes longer. Two things could still beat them: what the L2 cache keeps between
operations, and algorithms that need fewer products than were counted, such as Winograd's.
"""

import importlib.util
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from disguide_jax.config import Config
from disguide_jax.core import backend, exchange
from disguide_jax.core.types import Stage, Task, TrainState
from disguide_jax.errors import UserError
from disguide_jax.run import asked, program
from disguide_jax.study import flops, gpus, hlo, rounds
from disguide_jax.study.gpus import GPUS, Gpu
from disguide_jax.study.measure import Row, Say
from disguide_jax.victims.defences import Traced

PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
PREALLOCATED = 0.75  # of a GPU's memory, by default; see `backend.memory_of_each` for more
MOST_KINDS = 12  # of operations that are printed; the JSON file has all


def bench_plan(config: Config, names: Sequence[str], say: Say) -> Iterator[Row]:
    """A row for each GPU of GPUS and each stage of the configuration that has rounds.

    Raises:
      UserError: the victim is an endpoint, or what compiles for GPUs is not installed.
    """
    if config.victim.endpoint:
        raise UserError(
            f"config.victim.endpoint is {config.victim.endpoint!r}; suite plan compiles whole "
            "rounds and needs a victim that is a network (config.victim.weights)"
        )
    if not any(_is_installed(plugin) for plugin in PLUGINS):
        raise UserError(
            "suite plan needs the compiler for NVIDIA GPUs, though no GPU: "
            "pip install -e '.[cuda12]'"
        )
    config = rounds.without_files(config, say)
    say("nothing was measured: times are lower bounds and queries/s upper ones")
    say(
        f"what fits is within the {PREALLOCATED:.0%} of a GPU's memory that JAX takes by itself; "
        "cuDNN's workspaces, test images and copies for checkpoints must fit beside it there"
    )
    for name in names:
        # A process of its own: what this one's JAX has begun with stays as it is.
        context = multiprocessing.get_context("spawn")
        with futures.ProcessPoolExecutor(1, context, _begin) as process:
            rows = process.submit(plan, config, name).result()
        yield from rows
        hours = sum(row["least_hours"] for row in rows)
        say(f"{name}: {hours:.2f} hours at least for {config.query_budget:,} queries")


def plan(config: Config, name: str) -> list[Row]:
    """The rows of one GPU, in a process that `_begin` has begun.

    Raises:
      UserError: something in the configuration or the victim's file is wrong.
    """
    with backend.pretended("gpu"):
        config = program.resolve(config)
        victim, task = victim_shapes(config)
        stages, kits, state = program.make_trained(config, task)
        rows = []
        for stage in stages:
            if stage.num_rounds:
                play = program.make_play(kits[stage.name], stage)
                compiled = compile_for(GPUS[name], play, state, victim)
                products = flops.products_of(play, state, victim)
                case = name if len(stages) == 1 else f"{name}, {stage.name}"
                row = make_row(GPUS[name], stage, compiled, products)
                rows.append({"case": case, "compute_dtype": config.precision, **row})
    return rows


def victim_shapes(config: Config) -> tuple[Traced, Task]:
    """The shapes of the victim, and what it classifies.

    Raises:
      UserError: something about the victim or the data set is wrong.
    """
    tasks = []

    def load() -> Traced:
        victim, task, _ = asked.load(config)
        tasks.append(task)
        if not isinstance(victim, Traced):
            raise AssertionError("the victim is an endpoint")
        return victim

    return jax.eval_shape(load), tasks[0]


def compile_for(
    gpu: Gpu, play: exchange.Play, state: TrainState, victim: Traced
) -> jax.stages.Compiled:
    """A call that plays many rounds on a GPU, from shapes."""
    described = topologies.get_topology_desc(
        platform="cuda", target_config=gpus.described(gpu), topology="1x1x1"
    )
    on_gpu = jax.sharding.SingleDeviceSharding(described.devices[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_gpu),
        (state, victim, jax.ShapeDtypeStruct((), jnp.int32)),
    )
    lowered = exchange.make_call(play, looped=True).trace(*shapes)
    # To choose among algorithms it would time them.
    options = {"xla_gpu_autotune_level": 0}
    return lowered.lower(lowering_platforms=("cuda",)).compile(compiler_options=options)


def make_row(
    gpu: Gpu, stage: Stage, compiled: jax.stages.Compiled, products: dict[str, int]
) -> Row:
    """What a compiled round needs, and the least time that all rounds of its stage take.

    Args:
      gpu: that it was compiled for.
      stage: whose round it is.
      compiled: the call.
      products: FLOPs of a round by type, see `flops.products_of`.
    """
    text, stats = compiled.as_text(), compiled.memory_analysis()
    if text is None or stats is None:
        raise AssertionError("the compiled round does not say what it is")
    loop = hlo.Loop(text)
    traffic = loop.traffic()
    num_bytes = sum(moved.num_bytes for moved in traffic.values())
    by_bytes = gpus.seconds_by_bytes(gpu, num_bytes)
    by_products = gpus.seconds_by_products(gpu, products)
    least = max(by_bytes, by_products)
    return {
        "gpu": gpu.kind,
        "memory": memory_of(gpu, stats),
        "convolutions": loop.convolutions(),
        "traffic": {kind: moved._asdict() for kind, moved in traffic.items()},
        "bytes_moved": num_bytes,
        "flops": products,
        "least_seconds_by_bytes": by_bytes,
        "least_seconds_by_products": by_products,
        "most_queries_per_second": stage.queries / least,
        "num_rounds": stage.num_rounds,
        "queries": stage.queries,
        "least_hours": least * stage.num_rounds / 3600,
    }


def memory_of(gpu: Gpu, stats: Any) -> dict[str, int | bool]:
    """Bytes of a call, by XLA's `stats` of its memory, and whether a process has them.

    Not counted are the CUDA context, half a GB beside what the process preallocates; and within
    it the workspaces of cuDNN, test images and copies of what a checkpoint writes.

    Returns:
      `arguments`, of which `aliased` are updated in place; `temporaries`; what is `needed` of
      all; whether it `fits` what JAX preallocates by itself, or the `fits_at_most` that
      XLA_PYTHON_CLIENT_MEM_FRACTION can raise that to.
    """
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    code = stats.generated_code_size_in_bytes
    needed = stats.argument_size_in_bytes + new + stats.temp_size_in_bytes + code
    return {
        "arguments": stats.argument_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "needed": needed,
        "preallocated": int(PREALLOCATED * gpu.memory),
        "fits": needed <= PREALLOCATED * gpu.memory,
        "fits_at_most": needed <= backend.MOST_MEMORY * gpu.memory,
    }


def format_row(row: Row) -> str:
    """A paragraph: what is needed, what is moved, and what that takes."""
    memory = {k: f"{v / 1e9:.2f} GB" for k, v in row["memory"].items()}
    if row["memory"]["fits"]:
        fits = "fits"
    elif row["memory"]["fits_at_most"]:
        fits = f"fits with XLA_PYTHON_CLIENT_MEM_FRACTION={backend.MOST_MEMORY}"
    else:
        fits = "does not fit"
    total = f"{row['bytes_moved'] / 1e9:.1f} GB a round"
    products = ", ".join(f"{v / 1e12:.3g} TFLOP in {k}" for k, v in row["flops"].items())
    convolutions = ", ".join(f"{v} {k}" for k, v in row["convolutions"].items()) or "none"
    by_bytes, by_products = (
        f"{1e3 * row[f'least_seconds_by_{what}']:.2f} ms" for what in ("bytes", "products")
    )
    lines = [
        f"{row['case']}: {row['gpu']}",
        f"  memory        {fits}: {memory['needed']} of {memory['preallocated']}; arguments "
        f"{memory['arguments']}, aliased {memory['aliased']}, temporaries {memory['temporaries']}",
        f"  convolutions  {convolutions}",
        f"  bytes         {total}, at least {by_bytes}",
        *(
            f"    {kind:<40} {moved['times']:>5} {moved['num_bytes'] / 1e9:>8.2f} GB"
            for kind, moved in list(row["traffic"].items())[:MOST_KINDS]
        ),
        f"  products      {products or 'none'}, at least {by_products}",
        f"  queries/s     {row['most_queries_per_second']:,.0f} at most",
        f"  hours         {row['least_hours']:.2f} at least, {row['num_rounds']:,} rounds of "
        f"{row['queries']:,} queries",
    ]
    return "\n".join(lines)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _begin() -> None:
    """Begins a process that compiles: JAX must not look for the GPU, and Ctrl-C is the parent's.

    What it compiles cannot be read back from a cache without a device.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
