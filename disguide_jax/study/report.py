"""Stands in for the report until there is one."""

import json
import pathlib
from typing import Any


def write(report: dict[str, Any], path: pathlib.Path) -> None:
    """Writes an audit's JSON as it is."""
    path.write_text(f"<!doctype html><title>Audit</title><pre>{json.dumps(report, indent=1)}</pre>")
