"""Writes a weight file, a victim's or a clone's, as an ONNX file.

usage: python scripts/export_onnx.py WEIGHTS OUT.onnx --dataset D [--data_dir DIR]

WEIGHTS is a .safetensors, .pt or .pth file, or embedded:NAME. The file takes float32 images
[N, channels, H, W] from 0 to 1 and answers with probabilities.
"""

import argparse
import shlex
import sys

from disguide_jax import paths
from disguide_jax.errors import exit_status


def main() -> None:
    """Exports what the command line names."""
    usage = __doc__.split("usage: ")[1].split("\n\n")[0]
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="WEIGHTS")
    parser.add_argument("target", metavar="OUT", type=paths.writable)
    parser.add_argument("--dataset", required=True, help="whose classes and normalisation it has")
    parser.add_argument("--data_dir", default="", help="where the data set lies")
    args = parser.parse_args()
    from disguide_jax.victims.export import export  # takes seconds to import

    print(export(args.source, args.target, args.dataset, args.data_dir))
    endpoint = shlex.quote(f"--config.victim.endpoint=onnx:{args.target}")
    print(f"Copy it with --config.victim.weights= {endpoint}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
