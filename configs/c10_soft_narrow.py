"""CIFAR-10 with narrow networks, for two CPU cores: a ResNet-34 copied from its probabilities.

Victim:  ResNet-34 of a quarter of the width, victims/cifar10-resnet34_w16.safetensors, from
         python scripts/train_victim.py --config configs/victim_c10_r34_narrow.py
Clones:  two ResNet-18 of an eighth of the width.
Yields:  soft vote 40.6 % for seed 0 and a victim with 86.7 % (results/cifar10_cpu).
Cost:    3,125 rounds of 43 GFLOP, 87 minutes on one core of an Intel Xeon; 307 MB of replay.

python -m disguide_jax.main --config configs/c10_soft_narrow.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import narrow, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = narrow(
        "c10_soft_narrow",
        labels="soft",
        query_budget=200_000,
        generator={"learning_rate": 1e-3},
        clones={"learning_rate": 0.03},
        replay={"size": 25_000},  # of the budget what 1M is of the paper's 8M
    )
    return select(config, variant)
