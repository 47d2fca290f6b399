"""DFMS-HL (Sanyal et al., CVPR 2022), a method in stages; see `stages`."""

from disguide_jax.methods.dfms.stages import METHOD

__all__ = ["METHOD"]
