"""Tells how often a victim is right on the test images of a data set.

usage: python scripts/evaluate_victim.py --weights W --dataset D [--data_dir DIR]
           [--mean M [M M] --std S [S S]] [--predictions OUT.npy]

OUT.npy holds the predicted classes [N] int32 in the order of the data.
"""

import argparse
import sys

from disguide_jax import paths
from disguide_jax.errors import exit_status
from disguide_jax.options import VictimConfig


def main() -> None:
    """Prints what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="safetensors, .pt or .pth")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_dir", default="", help="of DATASET.npz or the TFDS data set")
    for name in ("--mean", "--std"):
        parser.add_argument(
            name, type=float, nargs="+", default=(), help="of pixels in [0, 1], per channel"
        )
    parser.add_argument("--predictions", type=paths.writable, metavar="OUT.npy")
    args = parser.parse_args()
    from disguide_jax.run import evaluate  # takes seconds to import

    config = VictimConfig(args.weights, mean=tuple(args.mean), std=tuple(args.std))
    print(evaluate.report(config, args.dataset, args.data_dir, args.predictions or ""))


if __name__ == "__main__":
    sys.exit(exit_status(main))
