"""Tells how often a victim is right on the test images of a data set.

usage: python scripts/evaluate_victim.py --weights W --dataset D [--data_dir DIR]
           [--predictions OUT.npy]

OUT.npy holds the predicted classes [N] int32 in the order of the data.
"""

import argparse
import pathlib
import sys

import numpy as np

from disguide_jax import data, evaluate, victim
from disguide_jax.config import VictimConfig
from disguide_jax.errors import UserError


def predict(weights: str, dataset: str, data_dir: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The architecture, and the predicted and the true classes [N] of the test images."""
    info = data.describe(dataset, data_dir)
    net, variables, found = victim.load_network(
        VictimConfig(weights=weights), num_classes=info.num_classes, channels=info.channels
    )
    test = data.load(dataset, "test", data_dir)
    oracle = victim.make_victim(net, variables, mean=info.mean, std=info.std, hard_labels=True)
    test_set = evaluate.make_test_set(oracle, test.images, test.labels)
    predictions = np.asarray(test_set.victim_labels).reshape(-1)[: len(test.labels)]
    return f"{found.model} of width {found.width}", predictions, test.labels


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="safetensors, .pt or .pth")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_dir", default="", help="of DATASET.npz or the TFDS data set")
    parser.add_argument("--predictions", type=pathlib.Path, metavar="OUT.npy")
    args = parser.parse_args()
    try:
        model, predictions, labels = predict(args.weights, args.dataset, args.data_dir)
        if args.predictions:
            try:
                with args.predictions.open("wb") as file:
                    np.save(file, predictions)
            except OSError as error:
                raise UserError(f"{args.predictions}: cannot be written: {error}") from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    right = int((predictions == labels).sum())
    print(f"{args.weights}: {model}")
    print(f"accuracy {right / len(labels):.4f}: {right:,} of {len(labels):,} {args.dataset} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
