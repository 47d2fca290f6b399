"""The tables and figures of the paper, each by one command.

usage: python scripts/reproduce.py STUDY [--scale full|medium|small|rehearsal] [--seeds 5]
           [--only CONFIG ...] [--results results] [--workdirs runs] [--data_dir DIR]
           [--jobs 1] [--dry-run] [--launcher local|slurm] [--slurm KEY=VALUE ...]

STUDY is table1 to table6, fig2 to fig5, best: what might beat the paper's settings, or precision:
what bfloat16 does to the curve.

Runs what has not finished, continues what was interrupted, and writes RESULTS/SCALE/STUDY: a
table as .md and .csv, a figure as .png and .svg, with the paper's numbers beside ours. "full" is
the paper's own sizes, for a GPU, and trains the victims first where they are absent. "medium" and
"small" are the same sweeps for two CPU cores: on Fashion-MNIST with 200,000 queries a run, and on
handwritten digits. Gray images have nothing to lose by being gray: Tables 3 and 4 of "medium" are
of CIFAR-10 with narrow networks, the victim trained first where it is absent, and those of "small"
of digits in colour. "rehearsal" is "full", victims included, with toy networks on noise, in
minutes.

--launcher slurm submits the runs as one array job (--slurm timeout_min=1440 partition=gpu
gpus_per_node=1: submitit's parameters). The same command again says how they are.
"""

import argparse
import sys

from disguide_jax import paths
from disguide_jax.errors import exit_status


def main() -> None:
    """Runs what is missing and shows what has finished."""
    import jax  # these take seconds

    from disguide_jax.study.cluster import LAUNCHERS
    from disguide_jax.study.reproduce import FULL, SCALES, STUDIES, reproduce

    jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--scale", choices=SCALES, default=FULL)
    parser.add_argument("--seeds", type=int, default=5, help="run each with seeds 0, 1, ...")
    parser.add_argument("--only", nargs="+", default=[], metavar="CONFIG", help="such as c10_hard")
    parser.add_argument("--results", type=paths.expanded, default="results")
    parser.add_argument("--workdirs", type=paths.expanded, default="runs")
    parser.add_argument("--data_dir", default="", help="where the data sets lie")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: 1, on a cluster any")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local")
    parser.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="of submitit")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    reproduce(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(exit_status(main))
