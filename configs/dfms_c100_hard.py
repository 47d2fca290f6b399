"""DFMS-HL on CIFAR-100, hard labels: a ResNet-18 copied from a ResNet-18.

Published: 43.56 % reported after 10M queries (DisGUIDE's Table 1).
Victim:    victims/cifar100-resnet18_8x.safetensors, from
           python scripts/train_victim.py --config configs/victim_c100_r18.py
Cost:      139,776 queries for validation and offline images, then 154,066 rounds of 64.

python -m disguide_jax.main --config configs/dfms_c100_hard.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import cifar, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = cifar(
        "dfms_c100_hard",
        recipe="victim_c100_r18",
        labels="hard",
        query_budget=10_000_000,
        method="dfms",
        batch_size=64,
        num_clones=1,
        generator={
            "model": "dcgan",
            "latent_dim": 100,
            "learning_rate": 2e-4,
            "diversity_weight": 100.0,
            "gray_every": 0,
        },
        clones={"learning_rate": 0.01},
    )
    return select(config, variant)
