"""The reference of all keys, made from what is known of each field of a configuration."""

import pathlib

from disguide_jax.audit_config import AuditConfig
from disguide_jax.config import Config, VictimTrainingConfig
from disguide_jax.files import atomic
from disguide_jax.settings import REQUIRED, settings

HEADING = "## Keys\n"
KINDS: dict[str, type] = {
    "Extractions": Config,
    "Audits": AuditConfig,
    "Trainings of victims": VictimTrainingConfig,
}


def reference() -> str:
    """A table of keys for each kind of configuration, in Markdown."""
    parts = [
        HEADING,
        "Those marked with * may change when a run continues. This part is made by "
        "`python scripts/reference.py` from the fields themselves.",
    ]
    for name, kind in KINDS.items():
        lines = ["| key | default | meaning | it must be |", "|---|---|---|---|"]
        for key, known in settings(kind).items():
            default = "" if known.default is REQUIRED else f"`{known.default!r}`"
            cells = (f"`{key}`{' *' * known.resume}", default, known.help, known.right)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts += [f"### {name}", "\n".join(lines)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def write(path: pathlib.Path) -> None:
    """Replaces the last part of a document, from its heading on."""
    kept = path.read_text().partition(HEADING)[0].rstrip("\n")
    with atomic.replacing(path) as file:
        file.write(f"{kept}\n\n{reference()}".encode())
