"""Writes a data set, in whatever form it lies on disk, as one .npz, which is fast to read.

usage: python scripts/prepare_data.py --dataset D [--data_dir DIR] [--only train|test] OUT.npz

DIR is what --config.data_dir may be: see disguide_jax/files/datasets.py. OUT.npz can be the
data_dir of a run.
"""

import argparse
import sys

from disguide_jax import paths
from disguide_jax.errors import exit_status
from disguide_jax.files import datasets


def main() -> None:
    """Writes what the command line names."""
    usage = __doc__.split("usage: ")[1].split("\n\n")[0]
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    parser.add_argument("target", metavar="OUT.npz", type=paths.writable)
    parser.add_argument("--dataset", required=True, help="its name; with files of your own, any")
    parser.add_argument("--data_dir", default="", help="where it lies, in any form")
    parser.add_argument("--only", choices=datasets.SPLITS, help="one split alone")
    args = parser.parse_args()
    splits = (args.only,) if args.only else datasets.SPLITS
    print(datasets.prepare(args.dataset, args.data_dir, args.target, splits))


if __name__ == "__main__":
    sys.exit(exit_status(main))
