"""MAZE on Fashion-MNIST: a LeNet-5 copied from its probabilities.

Victim:  LeNet-5, trained on Fashion-MNIST, 91.1 %; its weights come with the package.
Clones:  two LeNet-5 of its own size.
Data:    to test on; on Debian and Ubuntu `apt-get install dataset-fashion-mnist`.
Yields:  soft vote 72.2 to 79.6 % for seeds 0 to 4 (results/fashion).
         After 64,000 queries, seed 100: 60.1 %; with rates of 0.03 and 0.01:
         58.3 and 33.8.
Cost:    four minutes on one core of an AMD EPYC.

python -m disguide_jax.main --config configs/fashion_maze.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import fashion, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = fashion(
        "fashion_maze",
        labels="soft",
        query_budget=200_000,
        method="maze",
        generator={"optimizer": "sgd", "learning_rate": 3e-2},
        clones={"learning_rate": 0.1, "steps": 5, "soft_loss": "kl"},
        replay={"size": 200_000, "batches": 10},
        schedule={"shape": "cosine"},
        zeroth_order={"directions": 2},
    )
    return select(config, variant)
