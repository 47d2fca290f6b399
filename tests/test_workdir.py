"""A run is its content, not its spelling; and what was left to choose is chosen once."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from conftest import ROOT, load_script

from disguide_jax.core import backend
from disguide_jax.errors import UserError
from disguide_jax.files import datasets, weights
from disguide_jax.files import workdir as workdir_files
from disguide_jax.run import program as programs
from disguide_jax.run.extraction import train_and_evaluate
from disguide_jax.settings import get_value, set_value
from disguide_jax.victims.network import normalisation

EMBEDDED = ROOT / "disguide_jax/assets/digits-lenet5.safetensors"


def smoke(name="digits_hard", **changes):
    config = load_script(ROOT / f"configs/{name}.py").get_config("smoke")
    for key, value in changes.items():
        set_value(config, key.replace("__", "."), value)
    return config


def mine(path: pathlib.Path, **changes):
    return smoke(victim__weights=str(path), victim__model="lenet5", **changes)


def perturbed(path: pathlib.Path) -> None:
    """Replaces a victim by another one under the same name."""
    state_dict = weights.load_state_dict(path)
    state_dict["fc2.bias"] = state_dict["fc2.bias"] + np.float32(1e-3)
    weights.save_state_dict(path, state_dict)


@pytest.fixture
def victim(tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copy(EMBEDDED, tmp_path / "victim.safetensors"))


def test_a_replaced_victim_is_refused_by_a_finished_run_and_by_one_that_goes_on(tmp_path, victim):
    workdir = tmp_path / "w"
    summary = train_and_evaluate(mine(victim), workdir)
    perturbed(victim)
    with pytest.raises(UserError, match=r"another victim: the content of .*victim.safetensors"):
        train_and_evaluate(mine(victim), workdir)
    (workdir / "summary.json").unlink()
    with pytest.raises(UserError, match="another victim"):
        train_and_evaluate(mine(victim), workdir)
    (workdir / "config.json").unlink()  # the checkpoints know it, too
    with pytest.raises(UserError, match="another victim"):
        train_and_evaluate(mine(victim), workdir)

    moved = tmp_path / "moved.safetensors"
    shutil.copy(EMBEDDED, moved)
    again = train_and_evaluate(mine(moved), workdir)
    assert again["clones_sha256"] == summary["clones_sha256"]


def test_the_same_weights_elsewhere_are_the_same_run(tmp_path, victim, capsys):
    workdir = tmp_path / "w"
    train_and_evaluate(mine(victim), workdir)
    other = pathlib.Path(shutil.copy(victim, tmp_path / "other.safetensors"))
    train_and_evaluate(mine(other), workdir)
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_other_test_images_are_refused(tmp_path, monkeypatch):
    images = np.zeros((6, 32, 32, 1), np.uint8)
    labels = np.arange(6) % 2

    def write(value: int) -> None:
        images[0] = value
        np.savez(
            tmp_path / "two.npz",
            test_images=images,
            test_labels=labels,
            classes=np.array(["a", "b"]),
        )

    config = smoke(dataset="two", data_dir=str(tmp_path))
    write(0)
    train_and_evaluate(config, tmp_path / "w")
    write(9)
    with pytest.raises(UserError, match="another test images: the content of data set two"):
        train_and_evaluate(config, tmp_path / "w")


def test_config_json_leaves_nothing_to_choose_and_keeps_the_first_versions(tmp_path, monkeypatch):
    train_and_evaluate(smoke(victim__width=0), tmp_path)
    first = json.loads((tmp_path / "config.json").read_text())
    config = first["config"]
    assert (config["precision"], config["rounds_per_call"]) == ("float32", 1)
    assert config["query_dtype"] == "float32"
    assert (config["clones"]["width"], config["victim"]["width"]) == (3, 6)
    assert config["victim"]["mean"] == config["victim"]["std"] == [0.5]
    assert first["contents"].keys() == {"victim", "test images"}

    (tmp_path / "summary.json").unlink()
    train_and_evaluate(smoke(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == first
    newer = workdir_files.provenance() | {"git_commit": "another"}
    monkeypatch.setattr(workdir_files, "provenance", lambda: newer)
    for _ in range(2):
        (tmp_path / "summary.json").unlink()
        train_and_evaluate(smoke(), tmp_path)
    resumed = json.loads((tmp_path / "config.json").read_text())
    assert resumed == first | {"resumed_with": [newer]}


@pytest.mark.slow
def test_a_run_keeps_the_precision_that_it_began_with(tmp_path, monkeypatch, capsys):
    train_and_evaluate(smoke(), tmp_path)
    (tmp_path / "summary.json").unlink()
    monkeypatch.setattr(backend, "usual_dtype", lambda: np.dtype("bfloat16"))
    assert train_and_evaluate(smoke(), tmp_path)["config"]["precision"] == "float32"
    with pytest.raises(UserError, match=r"config\.precision: 'float32', now 'bfloat16'"):
        train_and_evaluate(smoke(precision="bfloat16"), tmp_path)


@pytest.mark.slow
def test_a_workdir_from_before_contents_were_hashed_goes_by_the_path(tmp_path, victim):
    workdir = tmp_path / "w"
    train_and_evaluate(mine(victim), workdir)
    started = json.loads((workdir / "config.json").read_text())
    del started["contents"]
    (workdir / "config.json").write_text(json.dumps(started))
    train_and_evaluate(mine(victim), workdir)
    other = pathlib.Path(shutil.copy(victim, tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match=r"config\.victim\.weights: '.*victim.safetensors', now"):
        train_and_evaluate(mine(other), workdir)


IGNORED = [
    ("digits_hard", "clones.steps", 7),
    ("digits_hard", "zeroth_order.epsilon", 0.5),
    ("digits_hard", "dfms.flip", False),
    ("digits_dual_students", "replay.size", 99),
    ("digits_dual_students", "replay.dtype", "uint8"),
    ("digits_dual_students", "generator.diversity_weight", 1.0),
    ("digits_dfme", "replay.batches", 1),
    ("digits_dfme", "generator.diversity_weight", 1.0),
    ("digits_maze", "disguide.fresh_batches", 2),
    ("digits_dfms", "schedule.shape", "cosine"),
    ("digits_dfms", "clones.steps", 2),
    ("digits_dfms", "as_in_text", True),
    ("digits_maze", "as_in_text", True),
]


@pytest.mark.parametrize(("name", "key", "value"), IGNORED)
def test_a_setting_that_a_method_makes_no_use_of_is_refused(name, key, value):
    config = smoke(name)
    set_value(config, key, value)
    with pytest.raises(UserError, match=rf"config\.{key} is .*{config.method} makes no use of it"):
        programs.resolve(config)


def test_the_text_of_the_paper_is_one_switch():
    config = programs.resolve(smoke("c10_soft", as_in_text=True))
    assert config.clones.soft_loss == "cross_entropy"
    assert config.generator.weight_decay == 5e-4
    full = load_script(ROOT / "configs/c10_hard.py").get_config()
    full.as_in_text = True
    full = programs.resolve(full)
    (stage,) = programs.stages_of(full)
    assert list(programs.boundaries_of(full, stage)) == [12_500, 25_000]  # 40 and 80 % of 31,250


def test_a_run_as_in_the_text_is_finished_and_continued_like_others(tmp_path, capsys):
    config = smoke("digits_soft", as_in_text=True)
    summary = train_and_evaluate(config, tmp_path)
    assert summary["config"]["clones"]["soft_loss"] == "cross_entropy"
    train_and_evaluate(config, tmp_path)
    assert "is finished" in capsys.readouterr().out
    (tmp_path / "summary.json").unlink()
    again = train_and_evaluate(config, tmp_path)
    assert again["clones_sha256"] == summary["clones_sha256"]
    with pytest.raises(UserError, match=r"config\.as_in_text: True, now False"):
        train_and_evaluate(smoke("digits_soft"), tmp_path)


@pytest.mark.parametrize(
    ("name", "query", "kept", "resolved"),
    [
        ("digits_soft", "auto", "uint8", "uint8"),
        ("digits_soft", "auto", "float32", "float32"),
        ("digits_soft", "uint8", "float32", "uint8"),
        ("digits_soft", "uint8", "uint8", "uint8"),
        ("digits_dual_students", "auto", "float32", "float32"),
        ("digits_dual_students", "uint8", "float32", "uint8"),
        ("digits_soft", "float32", "uint8", None),
        ("digits_soft", "uint8", "bfloat16", None),
    ],
)
def test_what_the_victim_sees_has_a_key_of_its_own_that_the_replay_can_hold(
    name, query, kept, resolved
):
    config = smoke(name, query_dtype=query, replay__dtype=kept)
    if resolved is None:
        with pytest.raises(UserError, match="would not hold what was answered"):
            programs.resolve(config)
    else:
        assert get_value(programs.resolve(config), "query_dtype") == resolved


def test_a_victims_file_says_how_it_normalises_and_a_contradiction_is_told(tmp_path):
    info = datasets.describe("digits")
    config = smoke(victim__weights=str(tmp_path / "v.safetensors")).victim
    state_dict = weights.load_state_dict(EMBEDDED)
    weights.save_state_dict(
        tmp_path / "v.safetensors", state_dict, {"mean": "[0.25]", "std": "[0.75]"}
    )
    assert normalisation(config, info) == ((0.25,), (0.75,))
    config.std = (0.75,)
    assert normalisation(config, info) == ((0.25,), (0.75,))
    config.mean = (0.5,)
    with pytest.raises(
        UserError, match=r"victim\.mean is \(0\.5,\), but .* trained with \(0\.25,\)"
    ):
        normalisation(config, info)
    weights.save_state_dict(tmp_path / "v.safetensors", state_dict)
    assert normalisation(config, info) == ((0.5,), (0.75,))


@pytest.mark.slow
def test_a_smoke_run_says_nothing_of_being_stuck(tmp_path, capsys):
    train_and_evaluate(smoke("digits_soft"), tmp_path)
    assert "guard" not in capsys.readouterr().out
