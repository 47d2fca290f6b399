"""The audit of the embedded LeNet-5 that reads Fashion-MNIST.

Victim:  LeNet-5, trained on Fashion-MNIST, 91.1 %; its weights come with the package.
Clones:  two LeNet-5 of its own size.
Data:    on Debian and Ubuntu `apt-get install dataset-fashion-mnist`.
Yields:  report.html: how close attacks come with 50,000 queries, with and without defences.

python -m disguide_jax.audit --config configs/audit_fashion.py
"""

from disguide_jax.audit_config import AuditConfig
from disguide_jax.presets import audit, select


def get_config(variant: str = "") -> AuditConfig:
    """The configuration, or its variant "smoke"."""
    config = audit(
        "audit_fashion",
        recipes=("fashion_soft", "fashion_hard"),
        query_budget=50_000,
        defences=("round", "top_k", "label_only", "noise", "reverse_sigmoid", "misinformation"),
        seeds=(0, 1, 2),
        price_per_1000=1.0,
        queries_per_second=10.0,
    )
    config.victim.decimals, config.victim.top_k = 2, 3
    return select(config, variant)
