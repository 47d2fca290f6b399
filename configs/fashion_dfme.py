"""DFME on Fashion-MNIST: a LeNet-5 copied from its probabilities.

Victim:  LeNet-5, trained on Fashion-MNIST, 91.1 %; its weights come with the package.
Clones:  two LeNet-5 of its own size.
Data:    to test on; on Debian and Ubuntu `apt-get install dataset-fashion-mnist`.
Yields:  soft vote 63.2 to 71.5 % for seeds 0 to 4 (results/fashion).
         After 64,000 queries, seed 100: 59.3 %; with rates of 0.1, 0.03 and 0.01:
         53.1, 46.3 and 34.1.
Cost:    two minutes on one core of an AMD EPYC.

python -m disguide_jax.main --config configs/fashion_dfme.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import fashion, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = fashion(
        "fashion_dfme",
        labels="soft",
        query_budget=200_000,
        method="dfme",
        generator={"learning_rate": 1e-3},
        clones={"learning_rate": 0.2, "steps": 5},
        zeroth_order={"directions": 1},
    )
    return select(config, variant)
