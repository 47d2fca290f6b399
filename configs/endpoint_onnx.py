"""A LeNet-5 that reads handwritten digits, in an ONNX file, copied.

Victim:  LeNet-5, exported to ONNX by the first command below.
Clones:  two half LeNet-5, tested on the digits of scikit-learn.
Yields:  soft vote 98.6 % for seed 0, of the victim's 98.8.

python scripts/export_onnx.py embedded:digits-lenet5.safetensors \\
    victims/digits-lenet5.onnx --dataset digits
python -m disguide_jax.main --config configs/endpoint_onnx.py
"""

from disguide_jax.config import Config
from disguide_jax.presets import endpoint, select


def get_config(variant: str = "") -> Config:
    """The configuration, or its variant "smoke"."""
    config = endpoint(
        "endpoint_onnx",
        endpoint="onnx:victims/digits-lenet5.onnx",
        made_by="python scripts/export_onnx.py embedded:digits-lenet5.safetensors "
        "victims/digits-lenet5.onnx --dataset digits",
    )
    return select(config, variant)
