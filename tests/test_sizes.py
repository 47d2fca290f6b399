"""Images of other sizes than 32x32, through everything that sees images."""

import functools
import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax import linen as nn
from PIL import Image

from disguide_jax import main, models
from disguide_jax.config import VictimTrainingConfig
from disguide_jax.core import backend
from disguide_jax.errors import UserError
from disguide_jax.files import architectures, datasets, npz, weights
from disguide_jax.methods.dfms import proxy
from disguide_jax.models import layers
from disguide_jax.models.resnet import ResNet
from disguide_jax.options import SIZES, VictimConfig
from disguide_jax.run import first_look, pictures
from disguide_jax.run import supervised as vt
from disguide_jax.study import flops, measure
from disguide_jax.study.results import Cell
from disguide_jax.victims import network


@pytest.fixture(params=[True, False], ids=["batch last", "batch first"])
def batch_last(request, monkeypatch):
    monkeypatch.setattr(backend, "batch_goes_last", lambda: request.param)


def shape_of(net, *shape: int) -> tuple[int, ...]:
    """Of what a network makes of inputs of this shape, in train mode."""
    variables = jax.eval_shape(net.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(functools.partial(net.apply, train=True), variables, x)[0].shape


def randomised(net, seed: int = 0):
    """Variables of a network in which no two numbers are alike, the running statistics too."""
    template = jax.eval_shape(net.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.1, 0.9, x.shape), x.dtype), template)


def save_npz(folder, name: str, *shape: int, num: int = 4, num_classes: int = 10) -> None:
    rng = np.random.default_rng(0)
    arrays = {"classes": np.array([f"class {k}" for k in range(num_classes)])}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (num, *shape), np.uint8)
        arrays[f"{split}_labels"] = np.arange(num) % num_classes
    np.savez(folder / f"{name}.npz", **arrays)


# Shapes


@pytest.mark.parametrize("size", [8, 12, 20, 48, 224])
@pytest.mark.usefixtures("batch_last")
def test_generators_make_and_discriminators_take_images_of_any_size(size):
    for model in models.GENERATORS:
        net = models.make_generator(model, width=2, latent_dim=5, size=size, channels=3)
        assert shape_of(net, 2, 5) == (2, size, size, 3)
    net = models.make_discriminator(width=2, size=size, channels=1)
    assert shape_of(net, 2, size, size, 1) == (2,)


ONE_OF_A_KIND = [
    "resnet18_8x",
    "resnet34_8x_pool",
    "resnet20",
    "resnet20_b",
    "wrn16_2",
    "wrn16_2_bias",
    "vgg11_bn",
    "vgg11_bn_7x7",
    "mobilenet_v2",
    "mobilenet_v2_c100",
    "densenet121_tv_pool",
    "lenet5",
    "lenet5_half",
]


@pytest.mark.parametrize("model", ONE_OF_A_KIND)
@pytest.mark.parametrize("size", [28, 48])
def test_classifiers_take_images_of_any_size_that_is_large_enough(model, size):
    make = functools.partial(models.make_classifier, model, num_classes=7, channels=3)
    if model.startswith(("lenet", "vgg")) and size < 32:
        message = f"{model} takes images of 32x32 .* larger, .* {size}x{size}; resnet18_8x and oth"
        with pytest.raises(UserError, match=message):
            make(size=size)
    else:
        width = 0 if model.startswith("lenet") else 2
        assert shape_of(make(width=width, size=size), 2, size, size, 3) == (2, 7)


@pytest.mark.parametrize("size", [-4, 0, 4, 30, 33, 228])
def test_sizes_that_no_network_takes_are_refused(size):
    message = rf"{size}x{size} pixels: their size must be a multiple of 4 from 8 to 224"
    with pytest.raises(UserError, match=message):
        models.make_classifier("resnet18_8x", num_classes=2, size=size, channels=1)
    with pytest.raises(UserError, match=message):
        models.make_generator(width=2, latent_dim=2, size=size, channels=1)
    with pytest.raises(UserError, match=message):
        models.make_discriminator(width=2, size=size, channels=1)


@pytest.mark.parametrize(
    ("size", "maps"),
    [(8, (8, 4, 2, 1)), (12, (12, 6, 3, 2)), (20, (20, 10, 5, 3)), (224, (224, 112, 56, 28))],
)
def test_strides_of_resnets_round_up_as_pytorchs_with_a_padding_of_1(size, maps):
    module = ResNet(blocks=(2, 2, 2, 2), width=1, num_classes=2)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

    def convolved(images):
        variables = module.init(jax.random.key(0), images, train=False)
        return module.apply(variables, images, train=False, capture_intermediates=True)[1]

    found = jax.eval_shape(convolved, images)["intermediates"]
    for stage, side in enumerate(maps, start=1):
        assert found[f"layer{stage}.0.conv1"]["__call__"][0].shape[1:3] == (side, side)


def test_a_stride_of_odd_maps_begins_at_the_padding():
    """Of 3x3 pixels with a padding of 1 it sees rows -1, 0, 1 and 1, 2, 3."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.conv(x, 1, 3, stride=2, padding=1, bias=False, dtype=None, name="conv")

    x = np.arange(9.0, dtype=np.float32).reshape(1, 3, 3, 1)
    ones = {"params": {"conv": {"kernel": jnp.ones((3, 3, 1, 1))}}}
    found = Layer().apply(ones, x)[0, ..., 0]
    np.testing.assert_array_equal(found, [[0 + 1 + 3 + 4, 1 + 2 + 4 + 5], [3 + 4 + 6 + 7, 24]])


# Values, against plain PyTorch-like code on [N, channels, H, W]


def conv_nchw(x, weight, bias, padding=0):
    y = jax.lax.conv(x, weight, (1, 1), [(padding, padding)] * 2)
    return y + bias[None, :, None, None]


def pool_nchw(x):
    x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max((3, 5))


@pytest.mark.parametrize(("size", "side"), [(32, 1), (36, 2), (48, 5)])
@pytest.mark.usefixtures("batch_last")
def test_lenets_are_pytorchs_with_a_larger_first_linear_layer(size, side):
    net = models.make_classifier("lenet5_half", num_classes=4, size=size, channels=3)
    variables = randomised(net)
    w = weights.to_state_dict(variables)
    assert w["fc1.weight"].shape == (42, 60 * side * side)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, size, size, 3)), jnp.float32)
    x = jnp.moveaxis(images, -1, 1)
    for i in (1, 2, 3):
        x = jax.nn.relu(conv_nchw(x, w[f"conv{i}.weight"], w[f"conv{i}.bias"]))
        x = pool_nchw(x) if i < 3 else x
    x = jax.nn.relu(x.reshape(2, -1) @ w["fc1.weight"].T + w["fc1.bias"][None])
    expected = x @ w["fc2.weight"].T + w["fc2.bias"][None]
    found, _ = jax.jit(functools.partial(net.apply, train=False))(variables, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.usefixtures("batch_last")
def test_the_generator_is_pytorchs_with_a_first_map_of_a_quarter_of_the_size(size):
    net = models.make_generator(width=2, latent_dim=5, size=size, channels=3)
    variables = randomised(net)
    w = weights.to_state_dict(variables)

    def norm(x, name):
        each = {k: w.get(f"{name}.{k}") for k in ("running_mean", "running_var", "weight", "bias")}
        mean, var, scale, bias = (v if v is None else v[:, None, None] for v in each.values())
        x = (x - mean[None]) / np.sqrt(var[None] + 1e-5)
        return x if scale is None else x * scale[None] + bias[None]

    def conv(x, name):
        return conv_nchw(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    z = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    x = z @ w["l1.0.weight"].T + w["l1.0.bias"][None]
    x = norm(x.reshape(2, 4, size // 4, size // 4), "conv_blocks0.0")
    for block in (1, 2):
        x = conv(x.repeat(2, axis=2).repeat(2, axis=3), f"conv_blocks{block}.0")
        x = jax.nn.leaky_relu(norm(x, f"conv_blocks{block}.1"), 0.2)
    expected = norm(conv(x, "conv_blocks2.3"), "conv_blocks2.4")
    found, _ = jax.jit(functools.partial(net.apply, train=False))(variables, z)
    assert found.shape == (2, size, size, 3)
    np.testing.assert_allclose(found, np.moveaxis(expected, 1, -1), rtol=1e-3, atol=1e-4)


def test_the_dcgan_cuts_its_images_out_of_those_of_the_next_multiple_of_8():
    small, large = (
        models.make_generator("dcgan", width=2, latent_dim=5, size=size, channels=3)
        for size in (12, 16)
    )
    variables = randomised(small)
    assert variables.params["main.0"]["kernel"].shape == (2, 2, 16, 5)  # an eighth of 16
    z = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    cut, whole = (net.apply(variables, z, train=False)[0] for net in (small, large))
    np.testing.assert_allclose(cut, whole[:, 2:-2, 2:-2], rtol=1e-5)


def test_the_discriminator_puts_images_into_those_of_the_next_multiple_of_16():
    small, large = (models.make_discriminator(width=2, size=s, channels=3) for s in (20, 32))
    variables = randomised(small)
    assert variables.params["main.11"]["kernel"].shape == (2, 2, 16, 1)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(3, 20, 20, 3)), jnp.float32)
    padded = jnp.pad(images, [(0, 0), (6, 6), (6, 6), (0, 0)])

    def judged(net, images):
        def total(params):
            logits, stats = net.apply(variables._replace(params=params), images, train=True)
            return jnp.sin(logits).sum(), (logits, stats)

        return jax.jit(jax.value_and_grad(total, has_aux=True))(variables.params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        judged(small, images),
        judged(large, padded),
    )


def test_a_single_value_has_no_variance():
    net = models.make_classifier("resnet18_8x", width=1, num_classes=2, size=8, channels=1)
    assert shape_of(net, 2, 8, 8, 1) == (2, 2)
    with pytest.raises(UserError, match=r"no variance: config\.batch_size must be larger"):
        shape_of(net, 1, 8, 8, 1)


# Weights in files


@pytest.mark.parametrize("model", ["lenet5", "lenet5_half"])
@pytest.mark.parametrize("size", [32, 36, 224])
def test_lenets_say_of_which_size_their_images_are(model, size):
    net = models.make_classifier(model, num_classes=7, size=size, channels=1)
    template = jax.eval_shape(net.init, jax.random.key(0))
    shapes = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), template)
    state_dict = weights.to_state_dict(shapes)
    assert architectures.recognise(state_dict, "w").size == size
    for wrong in (state_dict["fc1.weight"].shape[1] - 1, 1):
        fc1 = np.broadcast_to(np.float32(0), (84, wrong))
        with pytest.raises(UserError, match=r"(?s)not the weights.*fc1.weight \[features, 120"):
            architectures.recognise(state_dict | {"fc1.weight": fc1}, "w")


def test_weights_for_another_size_are_refused_and_resnets_take_all(tmp_path):
    path = tmp_path / "v.safetensors"
    load = functools.partial(
        network.load_network, VictimConfig(weights=str(path)), num_classes=3, channels=1
    )
    for model, width in (("lenet5_half", 3), ("resnet18_8x", 1)):
        net = models.make_classifier(model, width=width, num_classes=3, size=36, channels=1)
        weights.save_state_dict(path, weights.to_state_dict(randomised(net)))
        assert load(size=36)[2].model == model
        if "lenet" in model:
            message = "lenet5_half for images of 36x36 .* those of the data set are 32x32"
            with pytest.raises(UserError, match=message):
                load(size=32)
        else:
            assert load(size=8)[2].size == 0
        said = network.convert_victim(path, tmp_path / f"{model}.safetensors")
        assert ("36x36 pixels" in said) == ("lenet" in model)


# Data sets


@pytest.mark.parametrize(
    ("shape", "size"),
    [((8, 8), 8), ((12, 12, 1), 12), ((28, 28), 32), ((48, 48, 3), 48), ((224, 224, 3), 224)],
)
def test_a_data_set_of_ones_own_may_have_images_of_any_size(tmp_path, monkeypatch, shape, size):
    save_npz(tmp_path, "mine", *shape, num_classes=5)
    with monkeypatch.context() as patch:
        read = npz.read
        patch.setattr(npz, "read", lambda path, *names: read(path, *set(names) & {"classes"}))
        info = datasets.describe("mine", str(tmp_path))  # without reading the images
    channels = shape[2] if len(shape) == 3 else 1
    half = (0.5,) * channels
    assert info == datasets.Info(5, channels, half, half, size)
    images, _ = datasets.load("mine", "train", str(tmp_path))
    assert images.shape == (4, size, size, channels)
    inner = slice((size - shape[0]) // 2, (size + shape[0]) // 2)
    written = np.load(tmp_path / "mine.npz")["train_images"]
    np.testing.assert_array_equal(images[:, inner, inner].ravel(), written.ravel())


@pytest.mark.parametrize("shape", [(4, 4), (30, 30), (28, 32, 3), (12, 16), (228, 228, 1), (64,)])
def test_images_of_other_sizes_are_refused_with_those_that_are_right(tmp_path, shape):
    save_npz(tmp_path, "mine", *shape)
    for ask in (datasets.describe, lambda *where: datasets.load(where[0], "test", where[1])):
        with pytest.raises(UserError, match="multiple of 4 from 8 to 224") as error:
            ask("mine", str(tmp_path))
        assert str([4, *shape]) in str(error.value)


def test_both_splits_and_those_of_known_data_sets_have_one_size(tmp_path):
    save_npz(tmp_path, "cifar10", 64, 64, 3)
    with pytest.raises(UserError, match=r"\[4, 64, 64, 3\]; they must be \[N, 32, 32, 3\], or 28"):
        datasets.load("cifar10", "test", str(tmp_path))
    save_npz(tmp_path, "mine", 16, 16)
    arrays = dict(np.load(tmp_path / "mine.npz"))
    arrays["train_images"] = np.zeros((4, 12, 12), np.uint8)
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(UserError, match=r"\[4, 12, 12\]; they must be \[N, 16, 16, 1\]$"):
        datasets.load("mine", "train", str(tmp_path))


# Proxy images, pictures, needs

SAMPLED = (100, 32, 224)  # the first is the canvas itself


def test_proxy_images_of_32_are_what_they_were_and_others_are_samples_of_the_same_canvas():
    canvases, *others = (np.asarray(proxy.make_proxy(jax.random.key(0), 20, s)) for s in SAMPLED)
    assert hashlib.sha256(others[0].tobytes()).hexdigest().startswith("de88d2ba")
    for images in others:
        size = images.shape[1]
        nearest = [(2 * i + 1) * 100 // (2 * size) for i in range(size)]
        np.testing.assert_array_equal(images, canvases[:, nearest][:, :, nearest])


@pytest.mark.parametrize(("size", "num"), [(8, 64), (32, 64), (112, 64), (128, 49), (224, 25)])
def test_grids_have_fewer_images_where_these_are_large(size, num):
    assert pictures.num_images(size) == num


@pytest.mark.parametrize("size", [8, 48, 224])
def test_the_overview_finds_the_images_of_a_grid(tmp_path, size):
    images = np.zeros((25, size, size, 3), np.uint8)
    images += np.arange(25, dtype=np.uint8)[:, None, None, None] + 100
    (tmp_path / "samples").mkdir()
    pictures.save_image_grid(tmp_path / "samples/8.png", images)
    picked = pictures.some_tiles(tmp_path / "samples/8.png", size + 2)
    picked = picked.reshape(5, size + 2, size + 2, 3)
    np.testing.assert_array_equal(picked[:, 1:-1, 1:-1], images[[0, 6, 12, 18, 24]])
    (tmp_path / "metrics.jsonl").write_text("")
    pictures.save_overview(tmp_path, victim_accuracy=0.5, size=size)
    with Image.open(tmp_path / "overview.png") as overview:
        panel = np.asarray(overview.convert("RGB"))[100:400, 560:1050]
    for level in (106, 112, 118):
        assert (np.ptp(panel, axis=-1) == 0)[abs(panel[..., 0].astype(int) - level) < 2].any()


def test_evaluations_take_as_many_pixels_at_once():
    assert [backend.tested_at_once(size) for size in (8, 32, 64, 224)] == [1600, 100, 25, 2]


def test_benchmarks_and_flops_know_the_size(tmp_path):
    save_npz(tmp_path, "mine", 48, 48, 3)
    config = Cell("digits", "digits_hard:smoke").load(0)
    config.dataset, config.data_dir = "mine", str(tmp_path)
    assert measure.replay_bytes(config) == config.replay.size * (48 * 48 * 3 * 4 + 4)
    images, _ = measure.make_batch(measure.make_kit(config))
    assert images.shape == (8, 48, 48, 3)
    needed = {}
    for size in (16, 64):
        save_npz(tmp_path, "mine", size, size, 3)
        training = VictimTrainingConfig("t", "mine", "resnet18_8x", data_dir=str(tmp_path), width=1)
        training.train_images = training.batch_size = 4
        needed[size] = flops.training_flops(training)
    assert needed[64] == pytest.approx(16 * needed[16], rel=0.01)


# Whole runs


class Linear(nn.Module):
    """A classifier of any size of images, which compiles at once."""

    width: int
    num_classes: int
    dtype: type | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = layers.conv(x, self.width, 3, bias=False, dtype=self.dtype, name="conv1")
        return layers.dense(
            x.mean(axis=(1, 2)), self.num_classes, dtype=self.dtype, name="linear"
        ).astype(jnp.float32)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a smoke configuration on `mine.npz`, as the command line would."""
    monkeypatch.setitem(models.CLASSIFIERS, "linear", (Linear, 4, SIZES[0]))
    monkeypatch.chdir(tmp_path)

    def run(config: str, *arguments: str) -> tuple[int, str]:
        path = ROOT / f"configs/{config}.py"
        argv = ["disguide_jax.main", f"--config={path}:smoke", "--workdir=w"]
        argv += ["--config.dataset=mine", "--config.data_dir=.", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_:
            main.run()
        return exit_.value.code or 0, capsys.readouterr().err

    return run


LINEAR = ("--config.victim.model=linear", "--config.clones.model=linear")
METHODS = ("dfme", "soft", "dual_students", "maze", "dfms")  # the first is the quickest
RUNS = [(method, size, channels) for method in METHODS for size, channels in ((12, 1), (48, 3))]


@pytest.mark.parametrize(
    ("method", "size", "channels"),
    [RUNS[0], *(pytest.param(*run, marks=pytest.mark.slow) for run in RUNS[1:])],
)
def test_every_method_runs_with_images_of_another_size(
    run, tmp_path, monkeypatch, method, size, channels
):
    save_npz(tmp_path, "mine", size, size, channels)
    tested = set()
    monkeypatch.setattr(backend, "tested_at_once", lambda size: tested.add(size) or 100)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 300)
    columns = {12: 8, 48: 6}[size]
    status, err = run(f"digits_{method}", *LINEAR, "--config.clones.width=4")
    assert status == 0, err
    summary = json.loads((tmp_path / "w/summary.json").read_text())
    assert summary["queries"] == summary["query_budget"] - 3
    with Image.open(tmp_path / f"w/samples/{summary['queries']:09}.png") as grid:
        assert grid.size == (columns * (size + 2), columns * (size + 2))
        assert grid.mode == ("L" if channels == 1 else "RGB")
        assert np.asarray(grid).std() > 10
    assert (tmp_path / "w/overview.png").exists()
    assert tested == {size}


@pytest.mark.slow
def test_a_victim_of_48_pixels_is_trained_and_copied(run, tmp_path):
    save_npz(tmp_path, "mine", 48, 48, num=16)
    training = VictimTrainingConfig("t", "mine", "lenet5", data_dir=".")
    training.width, training.batch_size, training.epochs = 3, 8, 1
    training.evaluate_every_epochs = training.checkpoint_every_epochs = 1
    accuracy = vt.train_victim(training, tmp_path / "training")["test_accuracy"]
    path = "victims/mine-lenet5.safetensors"
    report = first_look.report(VictimConfig(weights=path), "mine", ".", "")
    assert f"accuracy {accuracy:.4f}" in report
    trained = f"--config.victim.weights={path}"
    arguments = (trained, "--config.victim.model=", "--config.victim.width=0")
    status, err = run("digits_soft", *arguments)
    assert status == 0, err
    state_dict = weights.load_state_dict(tmp_path / "w/clones/clone_0.safetensors")
    assert architectures.recognise(state_dict, "clone") == ("lenet5_half", 3, 1, 10, 48)
    save_npz(tmp_path, "mine", 32, 32)
    status, err = run("digits_soft", *arguments, "--workdir=other")
    assert status == 2
    assert "for images of 48x48 pixels, but those of the data set are 32x32" in err


def test_clones_that_do_not_take_the_images_are_refused_before_anything_is_sent(run, tmp_path):
    save_npz(tmp_path, "mine", 16, 16)
    status, err = run("digits_soft", "--config.victim.model=linear")
    assert status == 2
    assert "lenet5_half takes images of 32x32 pixels and larger" in err
    assert not (tmp_path / "w").exists()


def test_a_replay_that_does_not_fit_is_refused_with_its_size_and_takes_no_memory(run, tmp_path):
    save_npz(tmp_path, "mine", 224, 224, 3, num=2)
    arguments = ("--config.replay.size=1000000", "--config.query_budget=2000000")
    status, err = run("digits_soft", *LINEAR, *arguments)
    assert status == 2
    assert "602 GB of it for config.replay.size=1,000,000 images of 224x224x3 in " in err
    assert "config.replay.dtype=float32; there are " in err
    assert not (tmp_path / "w").exists()


def test_proxy_images_that_do_not_fit_are_refused_without_naming_a_replay(run, tmp_path):
    save_npz(tmp_path, "mine", 224, 224, 3, num=2)
    status, err = run("digits_dfms", *LINEAR, "--config.dfms.proxy_images=10000000")
    assert status == 2
    assert "the run needs 502 GB on the device; there are " in err
    assert "replay" not in err
