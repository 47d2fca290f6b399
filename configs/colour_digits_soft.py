"""The digits in colour: an embedded LeNet-5 that reads them, copied from its probabilities.

Victim:  LeNet-5, trained on scikit-learn's digits in colour; its weights come with the package.
Clones:  two LeNet-5 of half the width.

python -m disguide_jax.main --config configs/colour_digits_soft.py
"""

from disguide_jax.config import (
    ClonesConfig,
    Config,
    GeneratorConfig,
    ReplayConfig,
    VictimConfig,
    select,
)


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = Config(
        name="colour_digits_soft",
        dataset="colour_digits",
        labels="soft",
        query_budget=24_000,
        batch_size=16,
        victim=VictimConfig(weights="embedded:colour_digits-lenet5.safetensors", model="lenet5"),
        generator=GeneratorConfig(width=8, latent_dim=64, learning_rate=1e-3),
        clones=ClonesConfig(model="lenet5_half", learning_rate=0.03),
        replay=ReplayConfig(size=24_000, batches=3),
        log_every_queries=1_200,
        evaluate_every_queries=2_400,
        checkpoint_every_queries=8_000,
    )
    return select(config, variant)
