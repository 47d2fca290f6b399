"""The audit of the embedded LeNet-5 that reads handwritten digits.

Victim:  LeNet-5, trained on scikit-learn's digits; its weights come with the package.
Clones:  two LeNet-5 of half the width.
Yields:  report.html. With 9,600 queries disguide reaches 93.6 and 93.0 % from probabilities, 94.6
         and 97.0 % from labels (seeds 0 and 1; victim 98.8 %); random shapes reach 94 to 96 %.
Cost:    13 minutes of processor time.

python -m disguide_jax.audit --config configs/audit_digits.py
"""

from disguide_jax.audit_config import AuditConfig
from disguide_jax.presets import audit, digits, select

BUDGET = 9_600


def get_config(variant: str = "") -> AuditConfig:
    """The configuration, or its variant "smoke"."""
    soft = digits(
        "soft",
        labels="soft",
        query_budget=BUDGET,
        generator={"learning_rate": 1e-3, "gray_every": 0},
        clones={"learning_rate": 0.03},
        replay={"size": BUDGET},
    )
    hard = digits(
        "hard",
        labels="hard",
        query_budget=BUDGET,
        generator={"learning_rate": 3e-3, "gray_every": 0},
        clones={"learning_rate": 0.01},
        replay={"size": BUDGET},
    )
    dual_students = digits(
        "dual_students",
        labels="soft",
        query_budget=BUDGET,
        method="dual_students",
        generator={"learning_rate": 3e-5, "gray_every": 0},
        clones={"learning_rate": 0.03, "steps": 5},
    )
    dfme = digits(
        "dfme",
        labels="soft",
        query_budget=BUDGET,
        method="dfme",
        generator={"learning_rate": 3e-3, "gray_every": 0},
        clones={"learning_rate": 0.03, "steps": 5},
        zeroth_order={"directions": 1},
    )
    config = audit(
        "audit_digits",
        recipes=(soft, hard, dual_students, dfme),
        query_budget=BUDGET,
        attacks=("disguide", "dual_students", "dfme", "random", "shapes", "knockoff"),
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
