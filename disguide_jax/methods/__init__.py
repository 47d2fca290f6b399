"""Extraction methods: one file, or folder, and one line in this table each."""

from disguide_jax.core.exchange import Method
from disguide_jax.methods import dfme, dfms, disguide, dual_students, maze, offline

METHODS: dict[str, Method] = {
    method.METHOD.name: method.METHOD
    for method in (disguide, dual_students, dfme, maze, dfms, offline)
}
