"""Runs methods side by side on one victim and one budget, and tabulates and draws them.

usage: python scripts/compare.py [--family digits] [--seeds 5] [--jobs 1]
           [--results results] [--workdirs runs] [--dry-run]
           [--launcher local|slurm] [--slurm timeout_min=1440 KEY=VALUE ...]

A family is all of configs/FAMILY_*.py. The same command again continues; when all runs have
finished it writes RESULTS/FAMILY/comparison.{md,csv,png,svg} and prints the table.
"""

import argparse
import sys

from disguide_jax import paths
from disguide_jax.errors import exit_status


def main() -> None:
    """Runs what is missing and shows what has finished."""
    from disguide_jax.study.cluster import LAUNCHERS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="digits")
    parser.add_argument("--variant", default="", help="of the configurations: smoke")
    parser.add_argument("--seeds", type=int, default=5, help="run each with seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: 1, on a cluster any")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local")
    parser.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="of submitit")
    parser.add_argument("--results", type=paths.expanded, default="results")
    parser.add_argument("--workdirs", type=paths.expanded, default="runs")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    args = parser.parse_args()

    import jax  # these take seconds

    from disguide_jax.study.compare import compare

    jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs
    compare(**vars(args))


if __name__ == "__main__":
    sys.exit(exit_status(main))
