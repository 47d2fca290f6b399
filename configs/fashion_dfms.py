"""DFMS-HL on Fashion-MNIST: a LeNet-5 copied from its labels alone.

Victim:  LeNet-5, trained on Fashion-MNIST, 91.1 %; its weights come with the package.
Clones:  two LeNet-5 of its own size.
Data:    to test on; on Debian and Ubuntu `apt-get install dataset-fashion-mnist`.
Yields:  soft vote 74.9 to 80.2 % for seeds 0 to 4 (results/fashion).
         After 64,000 queries, seed 100, without validate_last: 56.2 %; with a rate of 0.1 in the
         last stage 54.1.
Cost:    twelve minutes on one core of an AMD EPYC.

python -m disguide_jax.main --config configs/fashion_dfms.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import fashion, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = fashion(
        "fashion_dfms",
        labels="hard",
        query_budget=200_000,
        method="dfms",
        generator={
            "model": "dcgan",
            "learning_rate": 2e-4,
            "diversity_weight": 50.0,
        },
        clones={"learning_rate": 0.03},
        dfms={
            "proxy_images": 10_000,
            "gan_epochs": 10,
            "validation_images": 2_000,
            "offline_images": 5_000,
            "offline_epochs": 20,
            "offline_learning_rate": 0.1,
            "diversity_epochs": 3,
            "choose_every_rounds": 200,
            "flip": False,
            "validate_last": True,
        },
    )
    return select(config, variant)
