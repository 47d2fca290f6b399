"""DFME on the digits: the embedded LeNet-5 copied from its probabilities.

Victim:  LeNet-5, trained on scikit-learn's digits; its weights come with the package.
Clones:  two LeNet-5 of half the width.

python -m disguide_jax.main --config configs/digits_dfme.py
"""

from disguide_jax.config import (
    ClonesConfig,
    Config,
    GeneratorConfig,
    ScheduleConfig,
    VictimConfig,
    ZerothOrderConfig,
    select,
)


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = Config(
        name="digits_dfme",
        dataset="digits",
        labels="soft",
        query_budget=48_000,
        method="dfme",
        batch_size=16,
        victim=VictimConfig(weights="embedded:digits-lenet5.safetensors", model="lenet5"),
        generator=GeneratorConfig(width=8, latent_dim=64, learning_rate=3e-3, gray_every=0),
        clones=ClonesConfig(model="lenet5_half", learning_rate=0.03, steps=5),
        schedule=ScheduleConfig(fractions=(0.4, 0.8)),
        zeroth_order=ZerothOrderConfig(directions=1),
        log_every_queries=1_200,
        evaluate_every_queries=2_400,
        checkpoint_every_queries=8_000,
    )
    return select(config, variant)
