"""Copies a black-box classifier without data.

usage: python -m disguide_jax.main --config configs/NAME.py[:variant]
           [--config.key=value ...] [--workdir DIR] [--extend]
           [--coordinator HOST:PORT --num_processes N --process_id I]

The same command again continues where it stopped.
"""

import pathlib
import sys

from disguide_jax.errors import exit_status


def main() -> int | None:
    """Runs what the command line says; returns the exit status."""
    from absl import flags  # here, where Ctrl-C is one line and no traceback

    from disguide_jax import cli
    from disguide_jax.config import Config

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Default: runs/<config name>.", flag_values=values)
    flags.DEFINE_boolean("extend", False, "Accept a larger query_budget.", flag_values=values)
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, of several in one run.", flag_values=values
    )
    flags.DEFINE_integer("num_processes", None, "How many those are.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", flag_values=values)

    def extract(values: flags.FlagValues, config: Config) -> None:
        from disguide_jax.run import extraction, processes, seeds

        workdir = pathlib.Path(values.workdir or pathlib.Path("runs") / config.name)
        several = bool(config.seeds)
        train_and_evaluate = (seeds if several else extraction).train_and_evaluate
        told = processes.told(values.coordinator, values.num_processes, values.process_id)
        with processes.joined(told):
            train_and_evaluate(config, workdir, extend=values.extend)

    return cli.call(extract, values, Config)


def run() -> None:
    """Parses the command line, runs, and exits."""
    sys.exit(exit_status(main))


if __name__ == "__main__":
    run()
