"""Converts a classifier's PyTorch weights into a victim: checks them, writes safetensors.

usage: python scripts/convert_victim.py IN.pt OUT.safetensors [--model MODEL]
           [--mean M [M M] --std S [S S]] [--test_accuracy A]

IN is a state dict, a checkpoint with one or a whole network, saved by torch.save in any
version, or safetensors; nothing in it is run. The architecture is recognised; what does not
fit it, and what was left out, is named. MODEL tells what names and shapes do not:
resnet18_8x_pool has a max-pool after its stem. OUT keeps what is known besides: the mean and
standard deviation of pixels in [0, 1] that the classifier was trained with, per channel, and its
accuracy, a fraction, on the test images.
"""

import argparse
import shlex
import sys

from disguide_jax import paths
from disguide_jax.errors import exit_status


def main() -> None:
    """Converts what the command line names."""
    usage = __doc__.split("usage: ")[1].split("\n\n")[0]
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="IN", type=paths.readable)
    parser.add_argument("target", metavar="OUT", type=paths.writable)
    parser.add_argument("--model", default="")
    parser.add_argument("--mean", type=float, nargs="+")
    parser.add_argument("--std", type=float, nargs="+")
    parser.add_argument("--test_accuracy", type=float)
    args = parser.parse_args()
    known = {name: getattr(args, name) for name in ("mean", "std", "test_accuracy")}
    known = {name: value for name, value in known.items() if value is not None}
    from disguide_jax.victims.network import convert_victim  # takes seconds to import

    print(convert_victim(args.source, args.target, model=args.model, **known))
    print("Use it with", shlex.quote(f"--config.victim.weights={args.target}"))


if __name__ == "__main__":
    sys.exit(exit_status(main))
