"""A module imports only from lower layers, and only models knows Flax's module system."""

import ast
import re
import subprocess
import sys

from conftest import ROOT

PACKAGE = ROOT / "disguide_jax"
LAYERS = [
    {"main"},
    {"cli"},
    {"studies"},
    {"cost"},
    {"victim_training"},
    {"train"},
    {"plan"},
    {"steps"},
    {"methods"},
    {"zeroth_order"},
    {"updates"},
    {"evaluate"},
    {"victim"},
    {"models"},
    {"optim", "checkpoint", "convert", "data"},
    {"state"},
    {"losses", "replay", "config", "writers", "pictures", "guard", "proxy"},
    {"errors"},
]


def imports(path):
    """What a file imports of the project, by the names of its modules and packages."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "disguide_jax":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("disguide_jax."):
                yield node.module.split(".")[1]


def layer(name):
    return next(i for i, names in enumerate(LAYERS) if name in names)


def test_every_module_imports_from_lower_layers_only():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("__init__", "assets"):
            continue
        for imported in imports(path):
            same_package = imported == parts[0] and len(parts) > 1
            assert same_package or layer(imported) > layer(parts[0]), f"{path}: {imported}"


def test_only_models_knows_flax_linen():
    knowing = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\blinen\b", path.read_text())
    }
    assert knowing == {"models"}


def test_only_the_command_line_knows_flags():
    knowing = {p.stem for p in PACKAGE.rglob("*.py") if "from absl" in p.read_text()}
    assert knowing == {"cli", "main"}


def test_losses_and_steps_import_without_the_program_torch_or_tensorflow():
    unwanted = {"torch", "tensorflow", "disguide_jax.train", "disguide_jax.cli"}
    code = (
        "import sys, disguide_jax.losses, disguide_jax.steps; "
        f"assert not {unwanted} & set(sys.modules), {unwanted} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
