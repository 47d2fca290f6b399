"""Tells when detectors would have noticed the extraction in a workdir.

usage: python scripts/detect.py WORKDIR [--queries N] [--orders N]

A line for each detector: the query at which it first sounds an alarm, and its false alarms on real
images in random orders. What an endpoint was sent is read from the ledger; a run whose victim is a
file of weights is played again from its start, up to the last alarm, and nothing is written.
"""

import argparse
import sys

from disguide_jax import paths
from disguide_jax.errors import exit_status


def at_least_one(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def main() -> None:
    """Prints what the command line asks for."""
    usage = __doc__.split("usage: ")[1].split("\n\n")[0]
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR", type=paths.expanded)
    parser.add_argument("--queries", type=at_least_one, help="look at no more than these")
    parser.add_argument("--orders", type=at_least_one, default=20, help="of real images")
    args = parser.parse_args()
    from disguide_jax.run.watching import judge_workdir  # takes seconds to import

    found = judge_workdir(args.workdir, most=args.queries, orders=args.orders)
    for name, watched in found.items():
        print(f"{name}: {watched}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
