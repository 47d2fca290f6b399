"""Writes the reference of all keys into configs/README.md.

usage: python scripts/reference.py
"""

import pathlib
import sys

from disguide_jax.errors import exit_status


def main() -> None:
    """Writes it."""
    from disguide_jax.study import reference

    reference.write(pathlib.Path(__file__).parents[1] / "configs/README.md")


if __name__ == "__main__":
    sys.exit(exit_status(main))
