"""DFME on CIFAR-10, soft labels: a ResNet-18 copied from a ResNet-34.

Published: 88.10 % reported after 20M queries.
Victim:    victims/cifar10-resnet34_8x.safetensors, from
           python scripts/train_victim.py --config configs/victim_c10_r34.py
Cost:      11,160 rounds of 1,792 queries: one generator update, five clone updates. No replay.

python -m disguide_jax.main --config configs/dfme_c10_soft.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import cifar, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = cifar(
        "dfme_c10_soft",
        recipe="victim_c10_r34",
        labels="soft",
        query_budget=20_000_000,
        method="dfme",
        num_clones=1,
        generator={"weight_decay": 5e-4, "gray_every": 0},
        clones={"learning_rate": 0.1, "steps": 5},
        schedule={"fractions": (0.1, 0.3, 0.5)},
        zeroth_order={"directions": 1, "epsilon": 1e-3},
    )
    return select(config, variant)
