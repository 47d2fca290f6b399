"""The embedded victim of clothes: a LeNet-5 that reads Fashion-MNIST.

Yields:  victims/fashion_mnist-lenet5.safetensors; disguide_jax/assets has the file that it gave.
         91.05 % of the 10,000 test images right.
How:     60,000 images of 28x28 pixels with a black margin of 2, as they are. Trained on shifted
         and mirrored ones, too, a victim is no better (90.6 % after 30 epochs) and much harder
         to copy.
Cost:    two minutes on two CPU cores.

python scripts/train_victim.py --config configs/victim_fashion_lenet5.py
"""

from disguide_jax.config import VictimTrainingConfig
from disguide_jax.presets import select


def get_config(variant: str = "") -> VictimTrainingConfig:
    """The configuration, or its variant "smoke"."""
    config = VictimTrainingConfig(
        name="victim_fashion_lenet5",
        dataset="fashion_mnist",
        model="lenet5",
        epochs=12,
        batch_size=128,
        learning_rate=0.05,
        crop_padding=0,
        flip=False,
        precision="float32",
    )
    return select(config, variant)
