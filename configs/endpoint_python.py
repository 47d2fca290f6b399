"""A scikit-learn classifier of handwritten digits behind a Python function, copied.

Victim:  a network of one hidden layer in scripts/sklearn_victim.py, trained as it is loaded.
Clones:  two half LeNet-5, tested on the digits of scikit-learn.
Yields:  soft vote 94.6, 93.8 and 93.8 % for seeds 0, 1 and 2, of the victim's 97.0.
Cost:    80 seconds on one core.

python -m disguide_jax.main --config configs/endpoint_python.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import endpoint, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = endpoint(
        "endpoint_python",
        endpoint="python:scripts.sklearn_victim:classify",
        disguide={"shapes": 0.5},
    )
    return select(config, variant)
