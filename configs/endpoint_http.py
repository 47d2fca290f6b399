"""A LeNet-5 that reads handwritten digits, served over HTTP on this machine, copied.

Victim:  LeNet-5, served by the first command below, in another terminal.
Clones:  two half LeNet-5, tested on the digits of scikit-learn.
Yields:  soft vote 98.0 % for seed 0, of the victim's 98.8, from a service that failed one
         request in five.

python scripts/serve_victim.py --weights embedded:digits-lenet5.safetensors --dataset digits
python -m disguide_jax.main --config configs/endpoint_http.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import endpoint, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = endpoint(
        "endpoint_http",
        endpoint="http://127.0.0.1:8501/v1/models/victim:predict",
        made_by="python scripts/serve_victim.py --weights embedded:digits-lenet5.safetensors "
        "--dataset digits",
    )
    return select(config, variant)
