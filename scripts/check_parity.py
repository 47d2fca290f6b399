"""Compares this project with numbers recorded from the authors' PyTorch code.

usage: python scripts/check_parity.py DIR

DIR holds state dicts (NAME.pt) and recordings (NAME.npz); every comparison that its files
allow is made, through the functions that train, in float64. Sizes are read from the arrays.
Exits with 1 if a quantity is off by more than its tolerance.
"""

import argparse
import sys

from disguide_jax import paths
from disguide_jax.errors import UserError, exit_status


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=paths.expanded, metavar="DIR")
    directory = parser.parse_args().directory
    if not directory.is_dir():
        raise UserError(f"{directory.absolute()} is no folder")
    from disguide_jax.study.parity import check  # takes seconds to import

    return 0 if check(directory) else 1


if __name__ == "__main__":
    sys.exit(exit_status(main))
