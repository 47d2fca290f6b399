"""Tells what each defence costs honest users of the victim of a configuration.

usage: python scripts/defence_price.py --config configs/NAME.py[:variant] [--config.key=value ...]

A line for each: accuracy on the test images without and with it, and how much answers change: the
mean over images of the sum over classes of |p' - p|, from 0 to 2. Numbers of defences are keys,
such as --config.victim.noise_scale=0.2; --help lists them.
"""

from absl import flags

from disguide_jax import cli
from disguide_jax.config import Config

FLAGS = flags.FlagValues()


def main(values: flags.FlagValues, config: Config) -> None:
    """Prints what the command line asks for."""
    from disguide_jax.run.price import prices  # takes seconds to import

    del values
    for about, price in prices(config):
        print(f"{about}\n    {price}", flush=True)


if __name__ == "__main__":
    cli.run(main, FLAGS, Config)
