"""The audit of the embedded LeNet-5 that reads Fashion-MNIST.

Victim:  LeNet-5, trained on Fashion-MNIST, 91.1 %; its weights come with the package.
Clones:  two LeNet-5 of its own size.
Data:    on Debian and Ubuntu `apt-get install dataset-fashion-mnist`.
Yields:  report.html: how close attacks come with 50,000 queries, with and without defences.

python -m disguide_jax.audit --config configs/audit_fashion.py
"""

from disguide_jax.audit_config import AuditConfig
from disguide_jax.presets import audit, fashion, select

BUDGET = 50_000


def get_config(variant: str = "") -> AuditConfig:
    """The configuration, or its variant "smoke"."""
    soft = fashion(
        "soft",
        labels="soft",
        query_budget=BUDGET,
        generator={"learning_rate": 1e-3},
        clones={"learning_rate": 0.1},
        replay={"size": BUDGET},
    )
    hard = fashion(
        "hard",
        labels="hard",
        query_budget=BUDGET,
        generator={"learning_rate": 1e-3},
        clones={"learning_rate": 0.03},
        replay={"size": BUDGET},
    )
    config = audit(
        "audit_fashion",
        recipes=(soft, hard),
        query_budget=BUDGET,
        defences=("round", "top_k", "label_only", "noise", "reverse_sigmoid", "misinformation"),
        seeds=(0, 1, 2),
        price_per_1000=1.0,
        queries_per_second=10.0,
    )
    config.victim.decimals, config.victim.top_k = 2, 3
    return select(config, variant)
