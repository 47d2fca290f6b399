"""The audit of a service that answers on this machine: a LeNet-5 that reads handwritten digits.

Victim:  LeNet-5, served by the first command below, in another terminal; or yours, with
         --config.victim.endpoint=ADDRESS, and --config.dataset=NAME of test images that it knows.
         Without any: --config.dataset= --config.victim.num_classes=K, .channels and .image_size.
Clones:  two half LeNet-5.
Yields:  report.html. What the service is sent, and how it is told, is in the ledgers of the runs.

python scripts/serve_victim.py --weights embedded:digits-lenet5.safetensors --dataset digits
python -m disguide_jax.audit --config configs/audit_endpoint.py
"""

from disguide_jax.audit_config import AuditConfig
from disguide_jax.presets import audit, select


def get_config(variant: str = "") -> AuditConfig:
    """The configuration, or its variant "smoke"."""
    config = audit(
        "audit_endpoint",
        recipes=("endpoint_http", "digits_hard"),
        query_budget=9_600,
        defences=("round", "top_k", "noise"),
        seeds=(0, 1),
        queries_per_second=10.0,
    )
    config.transfer.images = 100
    return select(config, variant)
