"""Copies a black-box classifier without data.

usage: python -m disguide_jax.main --config configs/NAME.py[:variant]
           [--config.key=value ...] [--workdir DIR] [--extend]

The same command again continues where it stopped.
"""

import pathlib
import shlex
import sys

from absl import flags

from disguide_jax import cli
from disguide_jax.config import Config
from disguide_jax.run.extraction import train_and_evaluate
from disguide_jax.run.signals import Stopped


def main(values: flags.FlagValues, config: Config) -> int:
    """Runs what the command line says; returns the exit status."""
    workdir = pathlib.Path(values.workdir or pathlib.Path("runs") / config.name)
    try:
        train_and_evaluate(config, workdir, extend=values.extend)
    except Stopped as stopped:
        command = shlex.join(["python", "-m", "disguide_jax.main", *sys.argv[1:]])
        print(f"{stopped} Continue with\n  {command}", flush=True)
        return 128 + stopped.signum
    return 0


def run() -> None:
    """Parses the command line, runs, and exits."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Default: runs/<config name>.", flag_values=values)
    flags.DEFINE_boolean("extend", False, "Accept a larger query_budget.", flag_values=values)
    cli.run(main, values, Config)


if __name__ == "__main__":
    run()
