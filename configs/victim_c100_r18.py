"""A ResNet-18 for CIFAR-100.

Yields:  victims/cifar100-resnet18_8x.safetensors
         for configs/c100_hard.py.
Goal:    77.7 % (the paper's victim: 77.70 %).
How:     50,000 images, batches of 256, SGD with momentum 0.9 and weight decay 5e-4, crops and
         mirror images; 240 epochs, the learning rate 0.1 falling to a fifth after each quarter:
         the recipe behind the paper's victims. bfloat16 on a GPU.
Cost:    4.0e16 operations (3.3 GFLOP an image).

python scripts/train_victim.py --config configs/victim_c100_r18.py
"""

from disguide_jax.config import VictimTrainingConfig
from disguide_jax.presets import select


def get_config(variant: str = "") -> VictimTrainingConfig:
    """The configuration, or its variant "smoke"."""
    config = VictimTrainingConfig(
        name="victim_c100_r18",
        dataset="cifar100",
        model="resnet18_8x",
    )
    return select(config, variant)
