"""The embedded victim: a LeNet-5 that reads scikit-learn's handwritten digits.

Yields:  victims/digits-lenet5.safetensors; disguide_jax/assets has the file that it gave.
How:     real scans of 8x8 pixels, resized to 32x32; shifts of up to 2 pixels, but no mirror
         images, for a mirrored digit is none.
Cost:    a minute on two CPU cores.

python scripts/train_victim.py --config configs/victim_digits_lenet5.py
"""

from disguide_jax.config import VictimTrainingConfig
from disguide_jax.presets import select


def get_config(variant: str = "") -> VictimTrainingConfig:
    """The configuration, or its variant "smoke"."""
    config = VictimTrainingConfig(
        name="victim_digits_lenet5",
        dataset="digits",
        model="lenet5",
        epochs=60,
        batch_size=64,
        learning_rate=0.02,
        crop_padding=2,
        flip=False,
        precision="float32",
        evaluate_every_epochs=5,
    )
    return select(config, variant)
