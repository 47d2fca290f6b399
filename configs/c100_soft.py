"""CIFAR-100, soft labels: two ResNet-18 copied from a ResNet-34.

Paper:   soft vote 69.47 ± 0.88 % after 10M queries (Table 1), victim 77.52 %.
Victim:  victims/cifar100-resnet34_8x.safetensors, from
         python scripts/train_victim.py --config configs/victim_c100_r34.py
Cost:    39,062 rounds of 8.8 TFLOP; 12.3 GB of replay in float32, 3.1 GB in uint8.

python -m disguide_jax.main --config configs/c100_soft.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import paper, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = paper(
        "c100_soft",
        recipe="victim_c100_r34",
        labels="soft",
        query_budget=10_000_000,
        generator={"diversity_weight": 0.04},
    )
    return select(config, variant)
