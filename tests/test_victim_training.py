"""Victim training: augmentation, schedule, exact resume, what it writes and what it refuses."""

import dataclasses
import importlib.util
import json
import runpy
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT

from disguide_jax import models
from disguide_jax.config import VictimTrainingConfig, validate
from disguide_jax.core import pixels, supervised
from disguide_jax.core.exchange import make_call
from disguide_jax.core.images import augment
from disguide_jax.core.types import Net, Task, Variables
from disguide_jax.errors import Stopped, UserError
from disguide_jax.files import architectures, datasets, weights
from disguide_jax.options import VictimConfig
from disguide_jax.run import supervised as vt
from disguide_jax.victims import network

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("victim_*.py"))


def get_config(name, variant=""):
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Every training compiles anew; most of them here compile the same."""
    changes = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A directory with the data set "toy": bright squares in one of three corners."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def split(num):
        labels = rng.integers(0, 3, num)
        images = rng.integers(0, 60, (num, 32, 32, 1))
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(label, 2)
            image[16 * row :, 16 * column :][:16, :16] += 150
        return images.astype(np.uint8), labels.astype(np.uint8)

    train_images, train_labels = split(100)
    test_images, test_labels = split(50)
    np.savez(
        tmp_path / "toy.npz",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=np.array(["a", "b", "c"]),
    )
    return tmp_path


def toy_config(**changes):
    config = VictimTrainingConfig(
        name="toy",
        dataset="toy",
        data_dir=".",
        model="lenet5",
        width=3,
        epochs=4,
        batch_size=32,
        learning_rate=0.1,
        crop_padding=1,
        flip=False,
        checkpoint_every_epochs=2,
    )
    return dataclasses.replace(config, **changes)


# Augmentation and batches


def test_an_augmented_image_is_a_window_of_the_padded_one_or_its_mirror_image():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (256, 8, 8, 3), dtype=np.uint8)
    augmented = augment(jax.random.key(0), jnp.asarray(images), padding=2, flip=True)
    assert augmented.dtype == jnp.uint8

    seen = []
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    for source, result in zip(padded, np.asarray(augmented), strict=True):
        for row, column in np.ndindex(5, 5):
            window = source[row : row + 8, column : column + 8]
            for mirrored in (False, True):
                if np.array_equal(result, window[:, ::-1] if mirrored else window):
                    seen.append((row, column, mirrored))
    assert len(seen) == len(images)
    assert {(row, column) for row, column, _ in seen} == set(np.ndindex(5, 5))
    assert 0.4 < np.mean([mirrored for *_, mirrored in seen]) < 0.6


def test_without_padding_and_flip_images_stay_as_they_are():
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    augmented = augment(jax.random.key(1), images, padding=0, flip=False)
    np.testing.assert_array_equal(augmented, images)


def test_an_epoch_has_every_image_at_most_once_and_the_next_another_order():
    first, second = (
        np.asarray(supervised.draw_order(jax.random.key(0), e, 100, 32)) for e in (0, 1)
    )
    for order in (first, second):
        assert order.shape == (3, 32)
        assert len(set(order.ravel())) == 96
        assert set(order.ravel()) <= set(range(100))
    assert (first != second).any()
    assert set(first.ravel()) != set(second.ravel())  # other images are left out


def task(num_classes, std=0.5):
    return Task(32, 1, num_classes, (0.5,), (std,))


def test_shifts_bring_in_black_and_not_the_mean():
    def apply(variables, x, *, train):
        assert train
        extremes = jnp.stack([x.min(), x.max()])[None]
        return variables.params["w"] * jnp.broadcast_to(extremes, (len(x), 2)), {}

    net = Net(lambda key: Variables({"w": jnp.ones(())}, {}), apply)
    config = toy_config(batch_size=64, crop_padding=4)
    tx = supervised.make_optimizer(config, 1)
    images = jnp.full((64, 32, 32, 1), 255, jnp.uint8)
    train_set = supervised.Images(images, jnp.zeros(64, jnp.int32))
    train_step = supervised.make_train_step(config, net, tx, task(2, std=0.25))
    state = supervised.init_state(config, net, tx, 64)
    _, metrics = jax.jit(train_step)(state, train_set)
    # (0 - mean) / std = -2 and (1 - mean) / std = 2, and the label is 0
    np.testing.assert_allclose(metrics["train/loss"], np.log(1 + np.exp(4)), rtol=1e-6)
    assert metrics["train/accuracy"] == 0


# Updates


def test_the_learning_rate_falls_at_fractions_of_the_training():
    config = toy_config(epochs=8, learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    tx = supervised.make_optimizer(config, steps_per_epoch=3)
    opt_state = tx.init(jnp.zeros(()))
    steps = []
    for _ in range(24):
        update, opt_state = tx.update(jnp.ones(()), opt_state, jnp.zeros(()))
        steps.append(-float(update))
    np.testing.assert_allclose(steps, np.repeat([1, 0.2, 0.04, 0.008], 6), rtol=1e-6)


def test_one_call_per_epoch_and_one_per_batch_make_the_same_updates():
    config = toy_config(flip=True, batch_size=32)
    net = models.make_classifier("lenet5", width=3, num_classes=3, size=32, channels=1)
    tx = supervised.make_optimizer(config, 2)
    images = jax.random.randint(jax.random.key(0), (64, 32, 32, 1), 0, 256).astype(jnp.uint8)
    train_set = supervised.Images(images, jnp.arange(64) % 3)
    train_step = supervised.make_train_step(config, net, tx, task(3))

    init = jax.jit(lambda: supervised.init_state(config, net, tx, 64))
    whole, whole_sums, played = make_call(train_step, looped=True)(init(), train_set, 4)
    one_batch = make_call(train_step, looped=False)
    state, sums, orders = init(), [], []
    for _ in range(4):
        state, metrics, _ = one_batch(state, train_set, 1)
        sums.append(metrics)
        orders.append(np.asarray(state.order))

    assert int(played) == int(whole.round) == int(state.round) == 4
    for order, epoch in zip(orders, (1, 1, 2, 2), strict=True):
        expected = supervised.draw_order(state.key, epoch, 64, 32)
        np.testing.assert_array_equal(order, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (whole.network, whole_sums),
        (state.network, jax.tree.map(lambda *m: sum(m), *sums)),
    )


def test_bfloat16_computes_in_bfloat16_and_keeps_weights_in_float32():
    config = toy_config(batch_size=8)
    net = models.make_classifier("lenet5", num_classes=3, size=32, channels=1, dtype=jnp.bfloat16)
    tx = optax.sgd(0.1)
    images = jnp.zeros((8, 32, 32, 1), jnp.uint8)
    train_set = supervised.Images(images, jnp.zeros(8, jnp.int32))
    train_step = jax.jit(supervised.make_train_step(config, net, tx, task(3)))
    state = jax.jit(lambda: supervised.init_state(config, net, tx, 8))()
    assert "bf16" in train_step.lower(state, train_set).as_text()
    state, _ = train_step(state, train_set)
    assert {x.dtype.name for x in jax.tree.leaves(state.network.variables)} == {"float32"}


# Whole trainings


def test_a_training_learns_and_its_file_is_the_victim_that_was_measured(toy):
    summary = vt.train_victim(toy_config(epochs=20), toy / "run")
    assert summary["test_accuracy"] > 0.9
    assert (summary["train_images"], summary["test_images"]) == (100, 50)

    path = toy / "victims" / "toy-lenet5.safetensors"
    assert summary["weights"] == str(path.relative_to(toy))
    metadata = weights.load_metadata(path)
    assert metadata["model"] == "lenet5"
    assert json.loads(metadata["width"]) == 3
    assert json.loads(metadata["test_accuracy"]) == summary["test_accuracy"]
    assert json.loads(metadata["recipe"])["epochs"] == 20

    assert accuracy_of(path, "toy", str(toy)) == summary["test_accuracy"]

    lines = [json.loads(line) for line in (toy / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 21))
    assert lines[-1]["eval/accuracy"] == summary["test_accuracy"]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert all(line["time/seconds"] > 0 for line in lines)


@pytest.mark.parametrize("interruption", ["signal", "crash"])
def test_an_interrupted_training_ends_with_the_same_bits(toy, monkeypatch, interruption):
    config = toy_config()
    vt.train_victim(dataclasses.replace(config, output="whole.safetensors"), toy / "whole")

    def interrupt(bar, line, epoch, epochs):
        if interruption == "signal" and epoch == 1:
            signal.raise_signal(signal.SIGTERM)
        if interruption == "crash" and epoch == 3:  # one after the checkpoint
            raise MemoryError

    config.output = "parts.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(vt, "report", interrupt)
        with pytest.raises(Stopped if interruption == "signal" else MemoryError):
            vt.train_victim(config, toy / "parts")
    assert not (toy / "parts/summary.json").exists()
    assert not (toy / "parts.safetensors").exists()
    vt.train_victim(config, toy / "parts")

    assert bits_of(toy / "parts.safetensors") == bits_of(toy / "whole.safetensors")

    def log_of(name):
        lines = (toy / name / "metrics.jsonl").read_text().splitlines()
        return [
            {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
            for line in lines
        ]

    assert log_of("parts") == log_of("whole")


def test_a_finished_training_is_left_alone_and_a_lost_file_is_written_again(toy, capsys):
    config = toy_config(epochs=1)
    summary = vt.train_victim(config, toy / "run")
    bits = bits_of(toy / summary["weights"])
    capsys.readouterr()
    again = vt.train_victim(config, toy / "run")
    assert again["test_accuracy"] == summary["test_accuracy"]
    assert "is finished" in capsys.readouterr().out

    (toy / summary["weights"]).unlink()
    vt.train_victim(config, toy / "run")
    assert bits_of(toy / summary["weights"]) == bits


def test_the_weights_of_another_training_are_not_overwritten(toy):
    vt.train_victim(toy_config(epochs=1), toy / "first")
    before = (toy / "victims/toy-lenet5.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"toy-lenet5\.safetensors exists"):
        vt.train_victim(toy_config(epochs=1, seed=1), toy / "second")
    assert (toy / "victims/toy-lenet5.safetensors").read_bytes() == before
    assert not (toy / "second").exists()

    (toy / "other.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"other\.safetensors exists"):
        vt.train_victim(toy_config(output="other.safetensors"), toy / "third")


def test_another_configuration_does_not_continue_a_workdir(toy):
    vt.train_victim(toy_config(epochs=1), toy / "run")
    with pytest.raises(UserError, match=r"config\.learning_rate"):
        vt.train_victim(toy_config(epochs=1, learning_rate=0.5), toy / "run")


def test_a_loss_that_is_not_finite_stops_the_training(toy):
    with pytest.raises(UserError, match=r"round \d+: train/loss is"):
        vt.train_victim(toy_config(learning_rate=1e30), toy / "run")
    assert not (toy / "victims/toy-lenet5.safetensors").exists()
    assert not (toy / "run/summary.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vgg"}, "there is no model 'vgg'; it must be one of resnet18_8x"),
        ({"epochs": 0}, "config.epochs is 0"),
        ({"batch_size": 1}, "config.batch_size is 1"),
        ({"batch_size": 101}, "config.batch_size is 101; it must be at most"),
        ({"learning_rate": 0.0}, "config.learning_rate is 0.0"),
        ({"decay_at": (0.5, 0.25)}, "config.decay_at is"),
        ({"precision": "half"}, "config.precision is 'half'"),
        ({"output": "weights.pt"}, "config.output is 'weights.pt'"),
        ({"train_images": 101}, "config.train_images is 101; it must be at most 100"),
        ({"crop_padding": -1}, "config.crop_padding is -1"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing_behind(toy, changes, message):
    with pytest.raises(UserError) as error:
        vt.train_victim(toy_config(**changes), toy / "run")
    assert message in str(error.value)
    assert not (toy / "run").exists()
    assert not (toy / "victims").exists()


# Configurations, the script, and the embedded victim


def run_script(monkeypatch, *arguments):
    """The script's exit status."""
    monkeypatch.setattr("sys.argv", ["train_victim.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / "scripts/train_victim.py"), run_name="__main__")
    return exit_.value.code or 0


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.epoch=3"], "epoch"),
        (["--config.epochs=0"], "config.epochs is 0"),
        (["--config.data_dir=nowhere"], "nowhere"),
    ],
)
def test_the_script_answers_mistakes_with_one_message(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    config = f"--config={ROOT / 'configs/victim_c10_r34.py'}"
    assert run_script(monkeypatch, config, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if "_r" in name else ()) for name in CONFIGS],
)
def test_smoke_variants_run_through_the_script(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert run_script(monkeypatch, f"--config={ROOT / 'configs' / name}.py:smoke") == 0
    summary = json.loads((tmp_path / "runs" / f"{name}-smoke/summary.json").read_text())
    assert summary["epochs"] == 2
    assert (tmp_path / summary["weights"]).exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_valid_and_their_headers_name_file_and_command(name):
    config, smoke = get_config(name), get_config(name, "smoke")
    assert config.name == name
    header = (ROOT / "configs" / f"{name}.py").read_text().split('"""')[1]
    assert str(vt.output_path(config)) in header
    assert f"python scripts/train_victim.py --config configs/{name}.py" in header
    for each in (config, smoke):
        validate(each)
        assert each.model in models.CLASSIFIERS
    assert vt.output_path(smoke) != vt.output_path(config)
    with pytest.raises(UserError, match="'smoke'"):
        get_config(name, "tiny")


EXTRACTIONS = ["c10_soft", "c10_hard", "c100_soft", "c100_hard", "c100_hard_r34"]
EXTRACTIONS += ["c10_soft_narrow", "c10_hard_narrow"]
EXTRACTIONS += ["c10_soft_best", "c10_hard_best", "c100_soft_best", "c100_hard_best"]


@pytest.mark.parametrize("name", EXTRACTIONS)
def test_extractions_find_the_file_that_the_command_they_name_writes(name):
    wanted = get_config(name).victim
    maker = wanted.made_by.removeprefix("python scripts/train_victim.py --config configs/")
    made = get_config(maker.removesuffix(".py"))
    assert wanted.weights == str(vt.output_path(made))
    assert (wanted.model, wanted.width) == (made.model, made.width)


def bits_of(path):
    """Everything that a file of weights says, exactly."""
    arrays = weights.load_state_dict(path)
    bits = {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}
    return weights.load_metadata(path), bits


def accuracy_of(path, dataset, data_dir=""):
    """Of a file of weights, through the oracle that an extraction would make of it."""
    info = datasets.describe(dataset, data_dir)
    net, variables, _ = network.load_network(
        VictimConfig(weights=str(path)),
        num_classes=info.num_classes,
        size=info.size,
        channels=info.channels,
    )
    oracle = network.make_victim(net, variables, mean=info.mean, std=info.std, hard_labels=True)
    test = datasets.load(dataset, "test", data_dir)
    return float((oracle(pixels.decode(jnp.asarray(test.images))) == test.labels).mean(dtype=float))


@pytest.mark.parametrize("dataset", ["digits", "colour_digits"])
def test_an_embedded_victim_is_the_one_that_its_configuration_describes(dataset):
    path = network.ASSETS / f"{dataset}-lenet5.safetensors"
    metadata = weights.load_metadata(path)
    recipe = vt.recipe(get_config(f"victim_{dataset}_lenet5"))
    assert metadata["recipe"] == json.dumps(recipe)
    accuracy = accuracy_of(path, dataset)
    assert accuracy == pytest.approx(json.loads(metadata["test_accuracy"]), abs=1e-6)
    assert accuracy >= 0.97
    assert f"{100 * accuracy:.1f} % accuracy" in (network.ASSETS / "README.md").read_text()
    assert architectures.recognise(weights.load_state_dict(path), str(path)).model == "lenet5"
