"""Tells how often the clones of a finished run are right, and how often they agree with the victim.

usage: python scripts/evaluate_clones.py WORKDIR [--dataset D] [--data_dir DIR]
           [--model package.module:Name] [--predictions OUT.npy]

The test images are those of the run, unless D is another data set of as many classes. Clones of a
Flax module of your own need its name, because importing a module runs it. OUT.npy holds the
classes that the soft vote names, [N] int32, in the order of the data.
"""

import argparse
import sys

from disguide_jax import paths
from disguide_jax.errors import exit_status


def main() -> None:
    """Prints what the command line asks for."""
    usage = __doc__.split("usage: ")[1].split("\n\n")[0]
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR", type=paths.expanded)
    parser.add_argument("--dataset", default="")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--predictions", type=paths.writable, metavar="OUT.npy")
    args = parser.parse_args()
    from disguide_jax.run import copies  # takes seconds to import

    images = args.dataset, args.data_dir
    print(copies.report(args.workdir, *images, args.predictions or "", args.model))


if __name__ == "__main__":
    sys.exit(exit_status(main))
