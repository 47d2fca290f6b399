"""Results of runs that never were, for the tests of what is computed from results."""

import json

from PIL import Image

from disguide_jax import config
from disguide_jax.study.results import Result


def make_result(accuracies, interval=100) -> Result:
    lines = [
        {"queries": interval * i, "gen/loss": 1.0, "eval/soft_vote_accuracy": accuracy}
        for i, accuracy in enumerate(accuracies, start=1)
    ]
    summary = {
        "soft_vote_accuracy": accuracies[-1],
        "max_soft_vote_accuracy": max(accuracies),
        "clone_accuracy": [accuracies[-1] - 0.02, accuracies[-1]],
        "victim_accuracy": 0.9,
        "fidelity": accuracies[-1],
        "queries": interval * len(accuracies),
        "wall_seconds": 60.0,
    }
    return Result(summary, lines)


def write_result(folder, cell, seed, accuracies=(0.5, 0.8)):
    target = folder / cell.folder / f"seed{seed}"
    target.mkdir(parents=True)
    result = make_result(accuracies)
    started_with = json.loads(json.dumps(config.to_dict(cell.load(seed))))
    (target / "summary.json").write_text(json.dumps(result.summary | {"config": started_with}))
    (target / "metrics.jsonl").write_text("\n".join(map(json.dumps, result.lines)))
    Image.new("RGB", (4, 4)).save(target / "samples.png")
    return target
