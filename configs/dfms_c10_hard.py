"""DFMS-HL on CIFAR-10, hard labels: a ResNet-18 copied from a ResNet-34.

Published: 84.51 % reported after 8M queries (DisGUIDE's Table 1).
Victim:    victims/cifar10-resnet34_8x.safetensors, from
           python scripts/train_victim.py --config configs/victim_c10_r34.py
Cost:      139,776 queries for validation and offline images, then 122,816 rounds of 64.

python -m disguide_jax.main --config configs/dfms_c10_hard.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import cifar, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = cifar(
        "dfms_c10_hard",
        recipe="victim_c10_r34",
        labels="hard",
        query_budget=8_000_000,
        method="dfms",
        batch_size=64,
        num_clones=1,
        generator={
            "model": "dcgan",
            "latent_dim": 100,
            "learning_rate": 2e-4,
            "diversity_weight": 500.0,
            "gray_every": 0,
        },
        clones={"learning_rate": 0.01},
    )
    return select(config, variant)
