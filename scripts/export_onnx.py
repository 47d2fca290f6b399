"""Writes a weight file, a victim's or a clone's, as an ONNX file.

usage: python scripts/export_onnx.py WEIGHTS OUT.onnx --dataset D [--data_dir DIR]

WEIGHTS is a .safetensors, .pt or .pth file, or embedded:NAME. The file takes float32 images
[N, channels, H, W] from 0 to 1 and answers with probabilities.
"""

import argparse
import pathlib
import sys

from disguide_jax.errors import exit_status
from disguide_jax.victims.export import export


def main() -> None:
    """Exports what the command line names."""
    usage = __doc__.split("usage: ")[1].split("\n\n")[0]
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="WEIGHTS")
    parser.add_argument("target", metavar="OUT", type=pathlib.Path)
    parser.add_argument("--dataset", required=True, help="whose classes and normalisation it has")
    parser.add_argument("--data_dir", default="", help="where the data set lies")
    args = parser.parse_args()
    print(export(args.source, args.target, args.dataset, args.data_dir))
    print(f"Copy it with --config.victim.weights= --config.victim.endpoint=onnx:{args.target}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
