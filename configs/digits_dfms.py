"""DFMS-HL on the digits: the embedded LeNet-5 copied from its labels alone.

Victim:  LeNet-5, trained on scikit-learn's digits; its weights come with the package.
Clones:  two LeNet-5 of half the width.
Yields:  soft vote 70.4 to 87.4 % for seeds 0 to 4 (results/digits), victim 98.8 %.

python -m disguide_jax.main --config configs/digits_dfms.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import digits, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = digits(
        "digits_dfms",
        labels="hard",
        query_budget=48_000,
        method="dfms",
        generator={
            "model": "dcgan",
            "learning_rate": 2e-4,
            "diversity_weight": 50.0,
            "gray_every": 0,
        },
        clones={"learning_rate": 0.01},
        dfms={
            "proxy_images": 2_000,
            "gan_epochs": 5,
            "validation_images": 500,
            "offline_images": 1_000,
            "offline_epochs": 20,
            "offline_learning_rate": 0.03,
            "diversity_epochs": 2,
            "choose_every_rounds": 200,
            "flip": False,
        },
    )
    return select(config, variant)
