"""A ResNet-34 of a quarter of the width for CIFAR-10, for two CPU cores.

Yields:  victims/cifar10-resnet34_w16.safetensors
         for configs/c10_soft_narrow.py, c10_hard_narrow.py.
Goal:    about 87 %: one of this shape, trained in PyTorch for as many epochs, has 86.7 %.
How:     50,000 images, batches of 128, crops and mirror images; 8 epochs, the learning rate 0.1
         falling to a fifth after each quarter.
Cost:    1.7e14 operations (0.44 GFLOP an image).

python scripts/train_victim.py --config configs/victim_c10_r34_narrow.py
"""

from disguide_jax.config import VictimTrainingConfig
from disguide_jax.presets import select


def get_config(variant: str = "") -> VictimTrainingConfig:
    """The configuration, or its variant "smoke"."""
    config = VictimTrainingConfig(
        name="victim_c10_r34_narrow",
        dataset="cifar10",
        model="resnet34_8x",
        width=16,
        output="victims/cifar10-resnet34_w16.safetensors",
        epochs=8,
        batch_size=128,
        checkpoint_every_epochs=1,
    )
    return select(config, variant)
