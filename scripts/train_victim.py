"""Trains a victim on real images and writes its weights.

usage: python scripts/train_victim.py --config configs/victim_NAME.py[:variant]
           [--config.key=value ...] [--workdir DIR]

The same command again continues where it stopped.
"""

import pathlib
import sys

from disguide_jax.errors import exit_status


def main() -> int | None:
    """Trains what the command line says; returns the exit status."""
    from absl import flags  # here, where Ctrl-C is one line and no traceback

    from disguide_jax import cli
    from disguide_jax.config import VictimTrainingConfig

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Default: runs/<config name>.", flag_values=values)

    def train(values: flags.FlagValues, config: VictimTrainingConfig) -> None:
        from disguide_jax.run.supervised import train_victim

        workdir = pathlib.Path(values.workdir or pathlib.Path("runs") / config.name)
        train_victim(config, workdir)

    return cli.call(train, values, VictimTrainingConfig)


if __name__ == "__main__":
    sys.exit(exit_status(main))
