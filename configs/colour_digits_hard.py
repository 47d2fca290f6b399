"""The digits in colour: an embedded LeNet-5 that reads them, copied from its labels alone.

Victim:  LeNet-5, trained on scikit-learn's digits in colour; its weights come with the package.
Clones:  two LeNet-5 of half the width.

python -m disguide_jax.main --config configs/colour_digits_hard.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import digits, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = digits(
        "colour_digits_hard",
        dataset="colour_digits",
        labels="hard",
        query_budget=24_000,
        generator={"learning_rate": 3e-3},
        clones={"learning_rate": 0.01},
        replay={"size": 24_000},
    )
    return select(config, variant)
