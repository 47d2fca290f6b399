"""CIFAR-10, hard labels: two ResNet-18 copied from a ResNet-34.

Paper:   soft vote 87.93 ± 1.74 % after 8M queries (Table 1), victim 95.54 %.
Victim:  victims/cifar10-resnet34_8x.safetensors, from
         python scripts/train_victim.py --config configs/victim_c10_r34.py
Cost:    31,250 rounds of 8.8 TFLOP; 12.3 GB of replay in float32, 3.1 GB in uint8.

python -m disguide_jax.main --config configs/c10_hard.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import paper, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = paper(
        "c10_hard",
        recipe="victim_c10_r34",
        labels="hard",
        query_budget=8_000_000,
        generator={"diversity_weight": 0.2},
    )
    return select(config, variant)
