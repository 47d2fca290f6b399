"""A ResNet-34 for CIFAR-10.

Yields:  victims/cifar10-resnet34_8x.safetensors
         for configs/c10_soft.py, c10_hard.py.
Goal:    95.5 % (the paper's victim: 95.54 %).
How:     50,000 images, batches of 256, SGD with momentum 0.9 and weight decay 5e-4, crops and
         mirror images; 240 epochs, the learning rate 0.1 falling to a fifth after each quarter:
         the recipe behind the paper's victims. bfloat16 on a GPU.
Cost:    8.4e16 operations (7.0 GFLOP an image). To see it learn on two busy CPU cores:
         --config.width=8 --config.epochs=1 --config.batch_size=64 gets 41.3 % of the test
         images right after 8 minutes.

python scripts/train_victim.py --config configs/victim_c10_r34.py
"""

from disguide_jax.config import VictimTrainingConfig
from disguide_jax.presets import select


def get_config(variant: str = "") -> VictimTrainingConfig:
    """The configuration, or its variant "smoke"."""
    config = VictimTrainingConfig(
        name="victim_c10_r34",
        dataset="cifar10",
        model="resnet34_8x",
    )
    return select(config, variant)
