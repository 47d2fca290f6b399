"""The audit of the embedded LeNet-5 that reads handwritten digits.

Victim:  LeNet-5, trained on scikit-learn's digits; its weights come with the package.
Clones:  two LeNet-5 of half the width.
Yields:  report.html. With 6,400 queries disguide reaches 91.6 and 94.2 % from probabilities, with
         cross-entropy 95.6 and 95.8, from labels 89.0 and 86.6 (seeds 0 and 1; victim 98.8 %);
         random shapes reach 92 to 95 %.
Cost:    14 minutes on two slow cores of an AMD EPYC.

python -m disguide_jax.audit --config configs/audit_digits.py
"""

from disguide_jax.audit_config import AuditConfig
from disguide_jax.presets import audit, select


def get_config(variant: str = "") -> AuditConfig:
    """The configuration, or its variant "smoke"."""
    config = audit(
        "audit_digits",
        recipes=("digits_soft", "digits_hard", "digits_dual_students", "digits_dfme"),
        query_budget=6_400,
        attacks=("disguide", "dual_students", "random", "shapes", "knockoff"),
        defences=(
            "round",
            "top_k",
            "label_only",
            "noise",
            "high_confidence",
            "reverse_sigmoid",
            "misinformation",
        ),
        seeds=(0, 1),
        price_per_1000=1.0,
        queries_per_second=10.0,
    )
    config.victim.decimals, config.victim.top_k = 2, 3
    return select(config, variant)
