"""CIFAR-10, soft labels: two ResNet-18 copied from a ResNet-34.

Paper:   soft vote 94.02 ± 0.25 % after 20M queries (Table 1), 93.36 ± 0.16 % after 8M
         (Table 3); victim 95.54 %.
Victim:  victims/cifar10-resnet34_8x.safetensors, from
         python scripts/train_victim.py --config configs/victim_c10_r34.py
Cost:    78,125 rounds of 8.8 TFLOP; 12.3 GB of replay in float32, 3.1 GB in uint8.

python -m disguide_jax.main --config configs/c10_soft.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import paper, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = paper(
        "c10_soft",
        recipe="victim_c10_r34",
        labels="soft",
        query_budget=20_000_000,
        generator={"diversity_weight": 0.2},
    )
    return select(config, variant)
