"""Measures how fast the program is on this machine, and how its costs grow.

usage: python scripts/bench.py --suite SUITE --json OUT [--sweep]
           [--config configs/NAME.py[:variant]] [--config.key=value ...]

clone_step  a training step of all clones: as the program takes it, network by network, and with
            the grouped convolutions that jax.vmap makes by itself
round       a round and its parts, which are compiled apart, its FLOPs against a measured matmul
            peak, memory, compile times; with --sweep how it grows with keys of the configuration
replay      inserting and sampling in large buffers, against a permutation of the whole buffer
checkpoint  what training loses to the checkpoints of a large buffer
endpoint    rounds against one victim inside JAX, as a function, an ONNX file and a service
seeds       whole runs with several seeds: in one process, and in one for each
plan        memory, bytes and least time of a round on GPUs that are not there; needs .[cuda12]

Cases take turns, so that whatever else the machine does hits all of them alike. Without --config
it is configs/c10_soft.py, on a CPU with narrow networks, batches of 64 and a smaller replay.
"""

import shlex
import sys

from absl import flags

from disguide_jax import cli, paths
from disguide_jax.config import Config
from disguide_jax.study.gpus import GPUS
from disguide_jax.study.suites import GOAL, SIZES, SUITES, SWEEP, default_config

FLAGS = flags.FlagValues()
flags.DEFINE_enum("suite", None, SUITES, "What is measured, see above.", flag_values=FLAGS)
flags.DEFINE_string("json", None, "Where the results go.", flag_values=FLAGS)
flags.DEFINE_float(
    "seconds", 30.0, "Cases take turns so long, three at least.", 0.0, flag_values=FLAGS
)
flags.DEFINE_boolean("sweep", False, "round: vary the configuration.", flag_values=FLAGS)
flags.DEFINE_multi_string("vary", SWEEP, "sweep: KEY=VALUE,VALUE,...", flag_values=FLAGS)
flags.DEFINE_list(
    "sizes", SIZES, "replay, checkpoint (the largest): of the buffer.", flag_values=FLAGS
)
flags.DEFINE_float(
    "queries_per_second", GOAL, "checkpoint: of the training.", 1e-9, flag_values=FLAGS
)
flags.DEFINE_multi_enum("gpu", [*GPUS], [*GPUS], "plan: compile for these.", flag_values=FLAGS)


def main(values: flags.FlagValues, config: Config) -> None:
    """Measures what the command line names."""
    from disguide_jax.study.bench import bench  # takes seconds to import

    cli.require(values, "suite", "json")
    command = shlex.join(["python", "scripts/bench.py", *sys.argv[1:]])
    varied = values.vary if values.sweep else []
    options = {n: getattr(values, n) for n in ("seconds", "sizes", "queries_per_second", "gpu")}
    path = paths.writable(values.json)
    bench(config, values.suite, path, command=command, vary=varied, **options)


if __name__ == "__main__":
    cli.run(main, FLAGS, Config, default_config)
