"""MAZE on the digits: the embedded LeNet-5 copied from its probabilities.

Victim:  LeNet-5, trained on scikit-learn's digits; its weights come with the package.
Clones:  two LeNet-5 of half the width.

python -m disguide_jax.main --config configs/digits_maze.py
"""

from disguide_jax.config import (
    ClonesConfig,
    Config,
    GeneratorConfig,
    ReplayConfig,
    ScheduleConfig,
    VictimConfig,
    ZerothOrderConfig,
    select,
)


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = Config(
        name="digits_maze",
        dataset="digits",
        labels="soft",
        query_budget=48_000,
        method="maze",
        batch_size=16,
        victim=VictimConfig(weights="embedded:digits-lenet5.safetensors", model="lenet5"),
        generator=GeneratorConfig(
            width=8, latent_dim=64, optimizer="sgd", learning_rate=3e-2, gray_every=0
        ),
        clones=ClonesConfig(model="lenet5_half", learning_rate=0.03, steps=5, soft_loss="kl"),
        replay=ReplayConfig(size=48_000, batches=10),
        schedule=ScheduleConfig(shape="cosine"),
        zeroth_order=ZerothOrderConfig(directions=2),
        log_every_queries=1_200,
        evaluate_every_queries=2_400,
        checkpoint_every_queries=8_000,
    )
    return select(config, variant)
