"""A module imports only from lower layers, and only models knows Flax's module system."""

import ast
import re
import subprocess
import sys

from conftest import ROOT

PACKAGE = ROOT / "disguide_jax"
TOLD = {"config", "options", "settings", "errors", "paths"}  # what a run and its user are told
ROOMS = {  # what each may import of the project, beside itself
    "core": TOLD,
    "methods": {"core", "models", *TOLD},
    "models": {"core", *TOLD},
    "victims": {"core", "models", "files", *TOLD},
    "files": {"core", *TOLD},
    "run": {"core", "methods", "models", "victims", "files", *TOLD},
    "study": {
        *("core", "methods", "models", "victims", "files", "run"),
        *("audit_config", "shipped"),
        *TOLD,
    },
    "presets": {"audit_config", "shipped", *TOLD},
    "audit_config": {"config", "options", "settings"},
    "config": {"options", "settings", "errors"},
    "options": {"settings"},
    "settings": {"errors"},
    "errors": set(),
    "paths": {"errors"},
    "shipped": set(),
    "process": set(),
    "cli": {"process", "shipped", *TOLD},
    "main": {"cli", "run", *TOLD},
    "audit": {"cli", "study", "audit_config", *TOLD},
}


def imports(path):
    """What a file imports of the project, by the names of its modules and packages."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "disguide_jax":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("disguide_jax."):
                yield node.module.split(".")[1]


def code(path):
    """A module without its docstrings and comments."""
    return re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.S)


def holding(pattern):
    """The modules whose code matches, by their path in the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {str(p.relative_to(PACKAGE)) for p in paths if re.search(pattern, code(p))}


def test_every_room_imports_only_what_it_may():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room not in ("__init__", "assets"):
            assert set(imports(path)) <= ROOMS[room] | {room}, path


def test_each_thing_stands_in_one_place():
    assert holding(r"127\.5|\b255\b") <= {
        "core/pixels.py",
        "files/datasets.py",  # in words
        "files/made.py",
        "methods/dfms/proxy.py",
        "options.py",  # in words
        "run/first_look.py",  # what other people's networks expect
    }
    assert holding(r"os\.fsync") == {"files/atomic.py"}
    assert holding(r"2\*\*31 - \d\d?\b") <= {"core/streams.py", "config.py"}
    assert holding(r"default_backend") == {"core/backend.py"}
    assert holding(r"usual_dtype\(") <= {"core/backend.py", "run/program.py", "run/supervised.py"}
    assert holding(r"sys\.stderr\)") == {"errors.py"}
    assert holding(r"\bmock\b") == set()
    asking = {path for path in holding(r"config\.victim\b") if path.startswith(("core", "methods"))}
    assert asking == {"core/zeroth_order.py"}, "to refuse it: `compiled.Shared` relies on it"


def test_functions_and_modules_are_short():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        text = path.read_text()
        lines = len(text.splitlines())
        assert lines <= (60 if path.parent.name == "scripts" else 400), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"


FRAGMENT = r"(Of|By|In|From|For|At|With|Likewise)\b.{0,40}\.$"  # such as "Of the buffer."


def test_docstrings_are_whole_sentences():
    """They begin with a capital letter, end with a full stop, and no fragment stands for one."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                continue
            text = ast.get_docstring(node)
            if text is None:
                continue
            first = text.split("\n\n")[0]
            assert first[0].isupper() or not first[0].isalpha(), f"{path}: {first}"
            assert first.rstrip()[-1] in ".:", f"{path}: {first}"
            assert len(first.split()) >= 3, f"{path}: {first}"
            assert not re.match(r"(Of|By|In|From|For|At|With)\b.{0,40}\.$", first), (
                f"{path}: {first}"
            )


def test_only_the_table_names_a_method():
    """What is whatever the method asks no method by its name."""
    for room in ("core", "run"):
        for path in (PACKAGE / room).glob("*.py"):
            text = path.read_text()
            for method in ("dual_students", "dfme", "maze", "dfms"):
                code = re.sub(r'""".*?"""|#[^\n]*', "", text, flags=re.S)
                assert not re.search(rf"\b{method}\b", code), f"{path}: {method}"


def test_only_models_knows_flax_linen():
    knowing = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\blinen\b", path.read_text())
    }
    assert knowing == {"models"}


def test_only_the_command_line_knows_flags():
    knowing = {p.stem for p in PACKAGE.rglob("*.py") if "from absl" in p.read_text()}
    assert knowing == {"cli", "main", "audit"}


def test_losses_and_steps_import_without_the_program_torch_or_tensorflow():
    unwanted = {"torch", "tensorflow", "disguide_jax.train", "disguide_jax.cli"}
    code = (
        "import sys, disguide_jax.core.losses, disguide_jax.core.exchange, disguide_jax.methods; "
        f"assert not {unwanted} & set(sys.modules), {unwanted} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_results_and_tables_import_without_jax():
    code = (
        "import sys, disguide_jax.study.tables, disguide_jax.study.results; "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
