"""MAZE on CIFAR-10, soft labels: a ResNet-18 copied from a ResNet-34.

Published: 89.85 % reported after 30M queries, with a ResNet-20 victim and a WRN-22 clone; victim
           and clone here are those of the other configurations, the training is as published.
Victim:    victims/cifar10-resnet34_8x.safetensors, from
           python scripts/train_victim.py --config configs/victim_c10_r34.py
Cost:      15,625 rounds of 1,920 queries: one generator update, five clone updates, ten on
           replayed batches.

python -m disguide_jax.main --config configs/maze_c10_soft.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import cifar, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = cifar(
        "maze_c10_soft",
        recipe="victim_c10_r34",
        labels="soft",
        query_budget=30_000_000,
        method="maze",
        batch_size=128,
        num_clones=1,
        generator={
            "latent_dim": 100,
            "optimizer": "sgd",
            "learning_rate": 1e-4,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "gray_every": 0,
        },
        clones={"learning_rate": 0.1, "steps": 5, "soft_loss": "kl"},
        replay={"batches": 10},
        schedule={"shape": "cosine"},
        zeroth_order={"directions": 10, "epsilon": 1e-3},
    )
    return select(config, variant)
