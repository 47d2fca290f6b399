"""Tells how often a victim is right on the test images of a data set.

usage: python scripts/evaluate_victim.py --weights W --dataset D [--data_dir DIR]
           [--mean M [M M] --std S [S S]] [--input_space SPACE] [--predictions OUT.npy]

Where that is seldom, it tries the usual normalisations and says which fits. SPACE is pre-transform
for a network that takes images in [-1, 1] as they are, and post-transform for one whose images are
normalised first; without it the weights say which. OUT.npy holds the predicted classes [N] int32
in the order of the data.
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
    parser.add_argument("--data_dir", default="", help="where the data set lies, in any form")
    for name in ("--mean", "--std"):
        parser.add_argument(
            name, type=float, nargs="+", default=(), help="of pixels in [0, 1], per channel"
        )
    parser.add_argument("--input_space", default="", choices=("pre-transform", "post-transform"))
    parser.add_argument("--predictions", type=paths.writable, metavar="OUT.npy")
    args = parser.parse_args()
    from disguide_jax.run import first_look  # takes seconds to import

    config = VictimConfig(args.weights, mean=tuple(args.mean), std=tuple(args.std))
    report = first_look.report(
        config, args.dataset, args.data_dir, args.predictions or "", args.input_space
    )
    print(report)


if __name__ == "__main__":
    sys.exit(exit_status(main))
