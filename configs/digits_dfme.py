"""DFME on the digits: the embedded LeNet-5 copied from its probabilities.

Victim:  LeNet-5, trained on scikit-learn's digits; its weights come with the package.
Clones:  two LeNet-5 of half the width.
Yields:  soft vote 88.0 to 94.8 % for seeds 0 to 4 (results/digits), victim 98.8 %.

python -m disguide_jax.main --config configs/digits_dfme.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import digits, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = digits(
        "digits_dfme",
        labels="soft",
        query_budget=48_000,
        method="dfme",
        generator={"learning_rate": 3e-3, "gray_every": 0},
        clones={"learning_rate": 0.03, "steps": 5},
        zeroth_order={"directions": 1},
    )
    return select(config, variant)
