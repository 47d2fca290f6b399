"""Data-free model extraction in JAX: DisGUIDE, exact, fast and resumable."""

__version__ = "0.1.0"
