"""Writes what a victim was asked and answered as one .npz, a transfer set.

usage: python scripts/export_queries.py WORKDIR OUT.npz

Other clones learn from it, for no query:
  python -m disguide_jax.main --config CONFIG --config.method=offline \\
      --config.offline.queries=OUT.npz
"""

import argparse
import sys

from disguide_jax import paths
from disguide_jax.errors import exit_status


def main() -> None:
    """Exports what the command line names."""
    usage = __doc__.split("usage: ")[1].split("\n\n")[0]
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR", type=paths.expanded)
    parser.add_argument("target", metavar="OUT", type=paths.writable)
    args = parser.parse_args()
    from disguide_jax.files import transfer, workdir  # takes seconds to import

    with workdir.lock(args.workdir):
        found = transfer.export(args.workdir, args.target)
    print(
        f"{args.target}: {len(found.images):,} images with answers, and {len(found.test_images):,} "
        "that clones are tested on"
    )


if __name__ == "__main__":
    sys.exit(exit_status(main))
