"""Dual Students on Fashion-MNIST: a LeNet-5 copied from its probabilities.

Victim:  LeNet-5, trained on Fashion-MNIST, 91.1 %; its weights come with the package.
Clones:  two LeNet-5 of its own size.
Data:    to test on; on Debian and Ubuntu `apt-get install dataset-fashion-mnist`.
Yields:  soft vote 43.5 to 63.9 % for seeds 0 to 4 (results/fashion).
         After 64,000 queries, seed 100: 49.8 %; with rates of 0.1, 0.03 and 0.01:
         46.6, 41.5 and 26.1.
Cost:    four minutes on one core of an AMD EPYC.

python -m disguide_jax.main --config configs/fashion_dual_students.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import fashion, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = fashion(
        "fashion_dual_students",
        labels="soft",
        query_budget=200_000,
        method="dual_students",
        generator={"learning_rate": 1e-4},
        clones={"learning_rate": 0.2, "steps": 5},
    )
    return select(config, variant)
