"""Trains the clones of a configuration on real images, and says how good they can get.

usage: python scripts/ceiling.py --config configs/NAME.py[:variant] [--config.key=value ...]

As many updates as in the run itself, with its victim, rates and loss, but on the training images
of its data set: what a data-free run is measured against. Nothing is written.
"""

from absl import flags

from disguide_jax import cli
from disguide_jax.config import Config

FLAGS = flags.FlagValues()


def main(values: flags.FlagValues, config: Config) -> None:
    """Trains what the command line names."""
    from disguide_jax.study.ceiling import ceiling  # takes seconds to import

    del values
    scores = ceiling(config)
    clones = ", ".join(f"{accuracy:.4f}" for accuracy in scores.clone_accuracy)
    print(
        f"with real images: soft vote {scores.soft_vote_accuracy:.4f} (clones {clones}), "
        f"fidelity {scores.fidelity:.4f}"
    )


if __name__ == "__main__":
    cli.run(main, FLAGS, Config)
