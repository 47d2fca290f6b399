"""MAZE on the digits: the embedded LeNet-5 copied from its probabilities.

Victim:  LeNet-5, trained on scikit-learn's digits; its weights come with the package.
Clones:  two LeNet-5 of half the width.
Yields:  soft vote 96.6 to 98.2 % for seeds 0 to 4 (results/digits), victim 98.8 %.

python -m disguide_jax.main --config configs/digits_maze.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import digits, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = digits(
        "digits_maze",
        labels="soft",
        query_budget=48_000,
        method="maze",
        generator={"optimizer": "sgd", "learning_rate": 3e-2, "gray_every": 0},
        clones={"learning_rate": 0.03, "steps": 5, "soft_loss": "kl"},
        replay={"size": 48_000, "batches": 10},
        schedule={"shape": "cosine"},
        zeroth_order={"directions": 2},
    )
    return select(config, variant)
