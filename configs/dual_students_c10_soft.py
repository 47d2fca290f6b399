"""Dual Students on CIFAR-10, soft labels: two ResNet-18 copied from a ResNet-34.

Published: 91.34 % reported after 20M queries; an independent rerun got 88.9 ± 1.1 %.
Victim:    victims/cifar10-resnet34_8x.safetensors, from
           python scripts/train_victim.py --config configs/victim_c10_r34.py
Cost:      15,625 rounds of 1,280 queries: one generator update, five clone updates. No replay.

python -m disguide_jax.main --config configs/dual_students_c10_soft.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import cifar, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = cifar(
        "dual_students_c10_soft",
        recipe="victim_c10_r34",
        labels="soft",
        query_budget=20_000_000,
        method="dual_students",
        generator={"weight_decay": 5e-4, "gray_every": 0},
        clones={"learning_rate": 0.3, "steps": 5},
        schedule={"fractions": (0.1, 0.3, 0.5)},
    )
    return select(config, variant)
