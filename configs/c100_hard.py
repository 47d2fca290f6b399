"""CIFAR-100, hard labels: two ResNet-18 copied from a ResNet-18.

Paper:   soft vote 62.04 ± 1.03 % after 10M queries (Table 1), victim 77.70 %.
Victim:  victims/cifar100-resnet18_8x.safetensors, from
         python scripts/train_victim.py --config configs/victim_c100_r18.py
Cost:    39,062 rounds of 8.8 TFLOP; 12.3 GB of replay in float32, 3.1 GB in uint8.

python -m disguide_jax.main --config configs/c100_hard.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import paper, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = paper(
        "c100_hard",
        recipe="victim_c100_r18",
        labels="hard",
        query_budget=10_000_000,
        generator={"diversity_weight": 0.04},
    )
    return select(config, variant)
