"""What watches the queries to a victim: a file with a `KIND` and a line in `DETECTORS` each."""

from disguide_jax.victims.detectors import label_histogram, prada
from disguide_jax.victims.detectors.kind import Alarm, Detector, Kind, Real

__all__ = ["DETECTORS", "Alarm", "Detector", "Kind", "Real"]

DETECTORS: dict[str, Kind] = {kind.name: kind for kind in (prada.KIND, label_histogram.KIND)}
