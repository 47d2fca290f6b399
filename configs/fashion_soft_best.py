"""Fashion-MNIST: a LeNet-5 copied from its probabilities, asked about what its copies dispute.

Victim:  LeNet-5, trained on Fashion-MNIST, 91.1 %; its weights come with the package.
Clones:  two LeNet-5 of its own size.
Data:    to test on; on Debian and Ubuntu `apt-get install dataset-fashion-mnist`.
Yields:  soft vote 89.9 to 90.2 % for seeds 0 to 4 (results/fashion).
Cost:    about fourteen minutes on one core of an Intel Xeon.

python -m disguide_jax.main --config configs/fashion_soft_best.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import fashion, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = fashion(
        "fashion_soft_best",
        labels="soft",
        query_budget=200_000,
        generator={"learning_rate": 1e-3},
        clones={"learning_rate": 0.1},
        replay={"size": 200_000, "batches": 16},
        disguide={"shapes": 0.5, "candidates": 4},
        schedule={"shape": "cosine"},
    )
    return select(config, variant)
