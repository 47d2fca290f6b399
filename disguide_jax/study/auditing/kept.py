"""What an audit has found is kept in files, so that one that continues does not find it again."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from disguide_jax.files import atomic


def kept[Value](path: pathlib.Path, asked_for: Any, find: Callable[[], Value]) -> Value:
    """What a file keeps of an earlier time, if the same was asked for; or what is found now."""
    asked_for = json.loads(json.dumps(asked_for))
    if path.exists():
        known = json.loads(path.read_text())
        if known["asked_for"] == asked_for:
            return known["found"]
    found = find()
    atomic.write_json(path, {"asked_for": asked_for, "found": found})
    return found
