"""Trains a victim on real images and writes its weights.

usage: python scripts/train_victim.py --config configs/victim_NAME.py[:variant]
           [--config.key=value ...] [--workdir DIR]

The same command again continues where it stopped.
"""

import pathlib
import shlex
import sys

from absl import flags

from disguide_jax import cli
from disguide_jax.config import VictimTrainingConfig
from disguide_jax.run.signals import Stopped
from disguide_jax.run.supervised import train_victim

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Default: runs/<config name>.", flag_values=FLAGS)


def main(values: flags.FlagValues, config: VictimTrainingConfig) -> int:
    """Trains what the command line says; returns the exit status."""
    workdir = pathlib.Path(values.workdir or pathlib.Path("runs") / config.name)
    try:
        train_victim(config, workdir)
    except Stopped as stopped:
        command = shlex.join(["python", "scripts/train_victim.py", *sys.argv[1:]])
        print(f"{stopped} Continue with\n  {command}", flush=True)
        return 128 + stopped.signum
    return 0


if __name__ == "__main__":
    cli.run(main, FLAGS, VictimTrainingConfig)
