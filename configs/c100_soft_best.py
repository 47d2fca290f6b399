"""CIFAR-100, soft labels: two ResNet-18 copied from a ResNet-34, with what helped elsewhere.

Sixteen replayed batches a round instead of three, rates that fall along a cosine, random shapes
for half of the queries, and of four times as many images those that the clones dispute most: all
help on Fashion-MNIST (results/README.md), where shapes on black look more like the victim's images
than here. To be measured; `--config.disguide.shapes=0` leaves the shapes out.

Victim:  victims/cifar100-resnet34_8x.safetensors, from
         python scripts/train_victim.py --config configs/victim_c100_r34.py
Cost:    39,062 rounds of 33.1 TFLOP; 12.3 GB of replay in float32, 3.1 GB in uint8.

python -m disguide_jax.main --config configs/c100_soft_best.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import paper, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = paper(
        "c100_soft_best",
        recipe="victim_c100_r34",
        labels="soft",
        query_budget=10_000_000,
        generator={"diversity_weight": 0.04},
        replay={"batches": 16},
        disguide={"shapes": 0.5, "candidates": 4},
        schedule={"shape": "cosine"},
    )
    return select(config, variant)
