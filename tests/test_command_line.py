"""What a user may write on a command line, and what is said of it where it is wrong."""

import pathlib
import shlex
import sys

import numpy as np
import pytest
from conftest import ROOT, load_script

from disguide_jax import cli, main
from disguide_jax.config import Config, validate
from disguide_jax.errors import UserError
from disguide_jax.run import supervised
from disguide_jax.settings import set_value
from disguide_jax.victims import endpoints, network

FILES = {
    "syntax.py": "def get_config(variant=''):\n    return (",
    "fails.py": "def get_config(variant=''):\n    return 1 / 0",
    "imports.py": "import absent_package",
    "finds_no_file.py": "def get_config(variant=''):\n    open('/absent/file')",
    "exits.py": "raise SystemExit(3)",
    "other.py": "def get_config(variant=''):\n    return {'seed': 1}",
    "empty.py": "",
    "flags.txt": "--workdir=w\njunk\n",
    "unknown.txt": "--no_such=1\n",
}
SAID = {  # of a command line
    "--config=absent.py": "--config: absent.py is not a file (looked for HERE/absent.py)",
    "--config=~/absent.py": "--config: HERE/home/absent.py is not a file",
    "--config=digits_had": "; did you mean configs/digits_hard.py?",
    "--config=home": "--config: home is a folder; name a file",
    "--config=": "--config is missing",
    "--config=syntax.py": "--config: syntax.py, line 2: not a line of Python: '(' was never closed",
    "--config=fails.py": "--config: fails.py, line 2: ZeroDivisionError: division by zero",
    "--config=fails.py --config.seed=1": "--config: fails.py, line 2: ZeroDivisionError",
    "--config=imports.py": "--config: imports.py, line 1: ModuleNotFoundError: No module named",
    "--config=finds_no_file.py": "--config: finds_no_file.py, line 2: FileNotFoundError: ",
    "--config=exits.py": "--config: exits.py, line 1: SystemExit: 3",
    "--config=other.py --config.seed=1": "disguide_jax.config.Config: it returns a dict",
    "--config=empty.py": "disguide_jax.config.Config: it has no get_config",
    "--flagfile=absent": "--flagfile: there is no file absent (looked for HERE/absent)",
    "--flagfile=home": "--flagfile: home is a folder; name a file",
    "--flagfile=flags.txt GOOD": "unknown argument 'junk'",
    "--flagfile=unknown.txt GOOD": "Unknown command line flag 'no_such'",
    "GOOD --extend=perhaps": "flag --extend=perhaps: true or false?",
    "GOOD --config.query_budget=1e6": "config.query_budget is '1e6'; it must be a whole number",
    "GOOD --config.seed=": "config.seed is ''; it must be a whole number from 0 to",
    "GOOD --config.replay.flip=perhaps": "replay.flip is 'perhaps'; it must be true or false",
    "GOOD --config.clones.momentum=(1,)": "is '(1,)'; it must be a finite number from 0 to below 1",
    "GOOD --config.victim.mean=a,b": "config.victim.mean is ('a,b',); it must be finite numbers",
    "GOOD --config.victim.mean=(None,)": "config.victim.mean is (None,); it must be finite numbers",
    "GOOD --config.victim.std=(1e999,)": "config.victim.std is (inf,); it must be above 0 in every",
    "GOOD --config.schedule.fractions=(0.1,nan)": "it must be growing fractions between 0 and 1",
    "GOOD --config.schedule.fractions=((0.1,),)": "it must be growing fractions between 0 and 1",
    "GOOD --config.victim=3": "config.victim is a group of keys, such as config.victim.weights",
    "GOOD --config.=3": "unknown key: config.; --help lists all",
    "GOOD --workdir=empty.py": "--workdir: cannot make the folder empty.py: HERE/empty.py is",
    "GOOD --workdir=~nobody-here/w": "~nobody-here/w: it begins with ~, but there is no such home",
    "GOOD --config.victim.weights=~/no.pt": "victim.weights: there is no file HERE/home/no.pt",
    "GOOD --config.victim.weights=home": "config.victim.weights: home is a folder; name a file",
    "GOOD --config.method=offline --config.offline.queries=~/no.npz": "no file HERE/home/no.npz",
    "GOOD --config.method=offline --config.offline.queries=home": "home is a folder; name a file",
    "GOOD --config.victim.weights= --config.victim.endpoint=onnx:~/no.onnx": "HERE/home/no.onnx",
    "GOOD --config.victim.weights= --config.victim.endpoint=onnx:home": "home is a folder; name a",
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder with FILES, a home and configs/, in which we are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


@pytest.mark.parametrize("command", SAID)
def test_a_mistake_is_one_message(here, monkeypatch, capsys, command):
    good = f"--config={ROOT / 'configs/digits_hard.py'}:smoke"
    monkeypatch.setattr(sys, "argv", ["main", *command.replace("GOOD", good).split(" ")])
    with pytest.raises(SystemExit) as exit_:
        main.run()
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert err.startswith("error: ")
    assert SAID[command].replace("HERE", str(here)) in err
    assert "Traceback" not in err
    assert not (here / "w").exists()


def config(**changes) -> Config:
    """A configuration with nothing wrong but these."""
    made = Config(name="some", dataset="digits", labels="soft", query_budget=1000)
    for key, value in ({"victim.weights": "w.pt"} | changes).items():
        set_value(made, key, value)
    return made


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("seed", "3", "a whole number from 0 to 4,294,967,295"),
        ("seed", 3.0, "a whole number from 0 to 4,294,967,295"),
        ("seed", True, "a whole number from 0 to 4,294,967,295"),
        ("batch_size", None, "at least 2, for batch statistics"),
        ("clones.learning_rate", "0.1", "a finite number above 0"),
        ("as_in_text", 1, "true or false"),
        ("data_dir", pathlib.Path("a"), "text"),
        ("victim.mean", 0.5, "finite numbers, such as"),
        ("victim.mean", (0.5, "a"), "finite numbers, such as"),
        ("schedule.fractions", None, "growing fractions"),
    ],
)
def test_a_value_of_another_type_in_a_file_is_named(key, value, what):
    with pytest.raises(UserError, match=rf"^config\.{key} is .*; it must be {what}"):
        validate(config(**{key: value}))


def test_numbers_of_numpy_and_lists_are_taken():
    numbers = {"seed": np.int64(3), "clones.momentum": np.float32(0.5), "victim.mean": [1]}
    validate(config(**numbers))


def test_every_path_of_a_configuration_begins_at_home(here):
    paths = {name: here / "home" / name for name in ("w.pt", "v.onnx", "o.safetensors")}
    for path in paths.values():
        path.write_bytes(b"")
    victim = config(**{"victim.weights": "~/w.pt"}).victim
    assert network.weights_path(victim) == paths["w.pt"]
    victim.endpoint = "onnx:~/v.onnx"
    assert len(endpoints.fingerprint(victim)) == 64
    training = load_script(ROOT / "configs/victim_digits_lenet5.py").get_config()
    training.output = "~/o.safetensors"
    assert supervised.output_path(training) == paths["o.safetensors"]


def test_hints_can_be_pasted(here, monkeypatch, capsys):
    name = "it's my victim.safetensors"
    with pytest.raises(UserError) as error:
        network.weights_path(config(**{"victim.weights": f"~/{name}"}).victim)
    (hint,) = [line for line in str(error.value).splitlines() if "convert_victim" in line]
    assert shlex.split(hint.partition(":")[2])[2:] == ["IN.pt", str(here / "home" / name)]
    source = ROOT / "disguide_jax/assets/digits-lenet5.safetensors"
    monkeypatch.setattr(sys, "argv", ["convert", str(source), f"~/{name}"])
    load_script("convert_victim").main()
    hint = capsys.readouterr().out.splitlines()[-1].removeprefix("Use it with ")
    assert shlex.split(hint) == [f"--config.victim.weights={here / 'home' / name}"]


@pytest.mark.parametrize("name", ["digits_hard", "digits_hard.py", "configs/digits_hard.py"])
def test_configurations_that_come_with_the_program_are_found_from_anywhere(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    found = cli._ConfigFile(Config).parse(f"{name}:smoke")
    assert found.name == "digits_hard-smoke"
    for elsewhere in ("other/digits_hard.py", "/digits_hard.py", "digits_hart.py"):
        with pytest.raises(UserError, match=f"{elsewhere} is not a file"):
            cli._ConfigFile(Config).parse(elsewhere)
    pathlib.Path("digits_hard.py").write_text("get_config = None")
    if "/" not in name and name.endswith(".py"):  # a file of one's own comes first
        with pytest.raises(UserError, match="TypeError"):
            cli._ConfigFile(Config).parse(name)
