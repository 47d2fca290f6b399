"""The real entry point: every smoke variant, and what it says to mistakes."""

import json
import pathlib
import sys

import numpy as np
import pytest
from conftest import ROOT

from disguide_jax import main
from disguide_jax.files import architectures, weights

CONFIGS = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if not path.stem.startswith(("victim_", "audit_"))
)
QUICK = ("digits_hard", "digits_dual_students")
SMALL = ("digits", "fashion", "endpoint")
PAPER = [name for name in CONFIGS if not any(word in name for word in SMALL)]

SUMMARY = {
    "config",
    "method",
    "seed",
    "query_budget",
    "queries",
    "rounds",
    "victim_accuracy",
    "defence",
    "defended_victim_accuracy",
    "soft_vote_accuracy",
    "hard_vote_accuracy",
    "clone_accuracy",
    "max_soft_vote_accuracy",
    "evaluation_queries",
    "fidelity",
    "queries_to",
    "wall_seconds",
    "queries_per_second",
    "clones_sha256",
    "versions",
    "git_commit",
}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the program as its command line would; returns status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(config: str, *arguments: str) -> tuple[int, str, str]:
        path = ROOT / "configs" / config
        argv = ["disguide_jax.main", f"--config={path}", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_:
            main.run()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


def files_in(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONFIGS],
)
def test_smoke_variant_leaves_everything_that_the_contract_lists(run, tmp_path, name):
    status, out, err = run(f"{name}.py:smoke", "--workdir=w")
    assert status == 0, err
    workdir = tmp_path / "w"
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary.keys() == SUMMARY
    assert summary["queries"] == summary["query_budget"] - 3, "the last 3 do not make a batch"
    num_clones = summary["config"]["num_clones"]
    assert len(summary["clone_accuracy"]) == num_clones
    assert len(summary["clones_sha256"]) == 64
    assert 0 <= summary["fidelity"] <= 1

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    if summary["method"] == "dfms":  # 2 + 2 rounds of each kind of bought images, then 5 and more
        assert summary["rounds"] == lines[-1]["round"] > 5
    else:
        assert summary["rounds"] == 5
        in_round = summary["queries"] // 5
        assert in_round % 8 == 0
        assert [line["queries"] for line in lines] == [i * in_round for i in range(1, 6)]
        evaluated = ["eval/soft_vote_accuracy" in line for line in lines]
        assert evaluated == [False, True, False, True, True]
    assert lines[-1]["eval/soft_vote_accuracy"] == summary["soft_vote_accuracy"]
    assert set().union(*lines) >= {"gen/loss", "clones/loss", "time/queries_per_second"}
    for i in range(num_clones):
        state_dict = weights.load_state_dict(workdir / "clones" / f"clone_{i}.safetensors")
        arch = architectures.recognise(state_dict, "clone")
        assert arch.model == summary["config"]["clones"]["model"]
    assert (workdir / "config.json").exists()
    assert (workdir / "samples" / f"{summary['queries']:09}.png").exists()
    assert any(path.startswith("events") for path in files_in(workdir / "tb"))
    for word in ("victim", "clones", "generator", "budget", "replay", "device"):
        assert word in out


def test_a_finished_run_is_left_alone_and_another_config_is_refused(run, tmp_path):
    assert run("digits_hard.py:smoke", "--workdir=w")[0] == 0
    before = (tmp_path / "w/summary.json").read_bytes()
    status, out, _ = run("digits_hard.py:smoke", "--workdir=w")
    assert status == 0
    assert "is finished" in out
    status, _, err = run("digits_hard.py:smoke", "--workdir=w", "--config.seed=1")
    assert status == 2
    assert "config.seed: 0, now 1" in err
    status, _, err = run("digits_hard.py:smoke", "--workdir=w", "--config.query_budget=60")
    assert status == 2
    assert "--extend" in err
    assert (tmp_path / "w/summary.json").read_bytes() == before


MISTAKES = {
    "--config.query_budget=-5": "config.query_budget is -5",
    "--config.query_budget=0": "config.query_budget is 0",
    "--config.query_budget=7": "it must be at least 8",
    "--config.query_budget=3000000000": "config.query_budget is 3000000000",
    "--config.query_budget=many": "config.query_budget",
    "--config.batch_size=0": "config.batch_size is 0",
    "--config.num_clones=1": "config.num_clones is 1",
    "--config.num_clones=-1": "config.num_clones is -1",
    "--config.no_such_key=1": "no_such_key",
    "--config.victim.no_such_key=1": "no_such_key",
    "--no_such_flag": "no_such_flag",
    "--config.method=magic": "config.method is 'magic'",
    "--config.labels=medium": "config.labels is 'medium'",
    "--config.clones.model=vgg": "there is no model 'vgg'",
    "--config.replay.size=7": "config.replay.size is 7",
    "--config.replay.dtype=int4": "config.replay.dtype is 'int4'",
    "--config.replay.size=900000000000": "config.replay.size=900,000,000,000",
    "--config.clones.learning_rate=nan": "config.clones.learning_rate is nan",
    "--config.schedule.fractions=(0.8,0.4)": "config.schedule.fractions",
    "--config.victim.weights=absent.safetensors": "absent.safetensors",
    "--config.victim.mean=(0.5,0.5)": "config.victim.mean",
    "--config.dataset=birds": "birds",
    "stray": "unknown argument 'stray'",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_leaves_nothing_behind(run, tmp_path, mistake):
    status, _, err = run("digits_hard.py:smoke", "--workdir=w", mistake)
    assert status == 2
    assert MISTAKES[mistake] in err
    assert "Traceback" not in err
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("absent.py", "absent.py is not a file"),
        ("../README.md", "README.md, line "),
        ("digits_hard.py:huge", "no variant 'huge'"),
        ("victim_digits_lenet5.py", "disguide_jax.config.Config"),
    ],
)
def test_a_config_that_is_none_is_refused(run, config, message):
    status, _, err = run(config)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def victim_of(name: str) -> tuple[str, str]:
    """The file of weights that a paper configuration needs, and the one that trains them."""
    if "narrow" in name:
        return "cifar10-resnet34_w16", "victim_c10_r34_narrow"
    if "c10_" in name:
        return "cifar10-resnet34_8x", "victim_c10_r34"
    if name in ("c100_hard", "c100_hard_best", "dfms_c100_hard"):
        return "cifar100-resnet18_8x", "victim_c100_r18"
    return "cifar100-resnet34_8x", "victim_c100_r34"


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_configuration_without_weights_names_the_file_and_the_commands(run, tmp_path, name):
    status, _, err = run(f"{name}.py")
    weights, config = victim_of(name)
    assert status == 2
    assert f"no file victims/{weights}.safetensors " in err
    assert f"python scripts/train_victim.py --config configs/{config}.py\n" in err
    assert f"python scripts/convert_victim.py IN.pt victims/{weights}.safetensors\n" in err
    assert files_in(tmp_path) == []


def test_an_onnx_file_that_is_absent_is_named_with_the_command_that_makes_it(run, tmp_path):
    status, _, err = run("endpoint_onnx.py")
    assert status == 2
    where = tmp_path / "victims/digits-lenet5.onnx"
    assert f"there is no file victims/digits-lenet5.onnx (looked for {where})\n" in err
    assert "python scripts/export_onnx.py embedded:digits-lenet5.safetensors victims/" in err
    assert files_in(tmp_path) == []


def damaged(path: pathlib.Path, how: str) -> None:
    """Writes the digits victim, damaged."""
    victim = ROOT / "disguide_jax/assets/digits-lenet5.safetensors"
    content = victim.read_bytes()
    state_dict = weights.load_state_dict(victim)
    match how:
        case "junk":
            path.write_bytes(b"junk" * 1000)
        case "cut off":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "not finite":
            state_dict["fc1.bias"] = state_dict["fc1.bias"] * np.nan
            weights.save_state_dict(path, state_dict)
        case "a tensor short":
            del state_dict["conv2.bias"]
            weights.save_state_dict(path, state_dict)
        case "another shape":
            state_dict["fc2.weight"] = np.zeros((7, 84), np.float32)
            weights.save_state_dict(path, state_dict)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("junk", "safetensors"),
        ("cut off", "safetensors"),
        ("empty", "it is empty"),
        ("not finite", "fc1.bias"),
        ("a tensor short", "conv2.bias [16] is missing"),
        ("another shape", "num_classes is 7"),
    ],
)
def test_damaged_weights_are_refused_by_name(run, tmp_path, how, message):
    damaged(tmp_path / "victim.safetensors", how)
    status, _, err = run(
        "digits_hard.py:smoke", "--config.victim.weights=victim.safetensors", "--workdir=w"
    )
    assert status == 2
    assert "victim.safetensors" in err
    assert message in err
    assert "Traceback" not in err
    assert files_in(tmp_path) == ["victim.safetensors"]


@pytest.mark.parametrize(
    ("key", "asked", "has", "message"),
    [
        (
            "model",
            "resnet18_8x",
            "lenet5",
            "model is 'lenet5', but the configuration needs 'resnet18_8x'",
        ),
        ("width", "4", "6", "width is 6, but the configuration needs 4"),
    ],
)
def test_weights_of_another_architecture_are_refused_with_what_takes_them(
    run, key, asked, has, message
):
    path = ROOT / "disguide_jax/assets/digits-lenet5.safetensors"
    weights = f"--config.victim.weights={path}"
    status, _, err = run("digits_hard.py:smoke", weights, f"--config.victim.{key}={asked}")
    assert status == 2
    assert f"{message}; --config.victim.{key}={has} takes it as it is" in err


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_naming_round_and_metric(run, tmp_path):
    status, _, err = run(
        "digits_hard.py:smoke", "--config.clones.learning_rate=1e38", "--workdir=w"
    )
    assert status == 2
    assert "round 1: clones/" in err or "round 2:" in err
    assert "Traceback" not in err
    assert not (tmp_path / "w/summary.json").exists()
    assert not (tmp_path / "w/clones").exists()
