"""A ResNet-18 of an eighth of the width for Fashion-MNIST.

Yields:  victims/fashion_mnist-resnet18_8x.safetensors, right on 92.7 % of the test images.
How:     60,000 images of 28x28 pixels with a black margin of 2; shifts of up to 2 pixels and
         mirror images.
Cost:    35 minutes on one core of an Intel Xeon.

python scripts/train_victim.py --config configs/victim_fashion_resnet.py
"""

from disguide_jax.config import VictimTrainingConfig
from disguide_jax.presets import select


def get_config(variant: str = "") -> VictimTrainingConfig:
    """The configuration, or its variant "smoke"."""
    config = VictimTrainingConfig(
        name="victim_fashion_resnet",
        dataset="fashion_mnist",
        model="resnet18_8x",
        width=8,
        epochs=12,
        batch_size=128,
        crop_padding=2,
        precision="float32",
        checkpoint_every_epochs=1,
    )
    return select(config, variant)
