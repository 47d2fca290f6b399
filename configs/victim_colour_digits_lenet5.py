"""An embedded victim in colour: a LeNet-5 that reads scikit-learn's handwritten digits.

Yields:  victims/colour_digits-lenet5.safetensors; disguide_jax/assets has the file it gave.
How:     as victim_digits_lenet5, with each scan in light ink of one colour on dark paper.
Cost:    a minute on two CPU cores.

python scripts/train_victim.py --config configs/victim_colour_digits_lenet5.py
"""

from disguide_jax.config import VictimTrainingConfig
from disguide_jax.presets import select


def get_config(variant: str = "") -> VictimTrainingConfig:
    """The configuration, or its variant "smoke"."""
    config = VictimTrainingConfig(
        name="victim_colour_digits_lenet5",
        dataset="colour_digits",
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
