"""Dual Students on the digits: the embedded LeNet-5 copied from its probabilities.

Victim:  LeNet-5, trained on scikit-learn's digits; its weights come with the package.
Clones:  two LeNet-5 of half the width.
Yields:  soft vote 89.0 to 94.6 % for seeds 0 to 4 (results/digits), victim 98.8 %.

python -m disguide_jax.main --config configs/digits_dual_students.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import digits, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = digits(
        "digits_dual_students",
        labels="soft",
        query_budget=48_000,
        method="dual_students",
        generator={"learning_rate": 3e-5, "gray_every": 0},
        clones={"learning_rate": 0.03, "steps": 5},
    )
    return select(config, variant)
