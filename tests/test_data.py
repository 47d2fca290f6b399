import hashlib
import importlib.util
import pathlib
import runpy
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from disk import (
    NUM_TEST,
    arrays,
    in_any_order,
    png,
    shrink,
    write_idx,
)

from disguide_jax.errors import UserError
from disguide_jax.files import datasets, idx, tfds

pytestmark = pytest.mark.usefixtures("nowhere_else")


def digest(split: datasets.Split) -> str:
    return hashlib.sha256(split.images.tobytes() + split.labels.tobytes()).hexdigest()


# What comes with the package


def test_digits_are_a_fixed_division_of_the_scans_at_their_full_range():
    train, test = datasets.load("digits", "train"), datasets.load("digits", "test")
    assert train.images.shape == (1297, 32, 32, 1)
    assert test.images.shape == (500, 32, 32, 1)
    assert test.images.dtype == np.uint8
    assert test.labels.dtype == np.int32
    assert (test.images.min(), test.images.max()) == (0, 255)
    assert np.bincount(test.labels).tolist() == [55, 53, 57, 39, 58, 53, 51, 41, 42, 51]
    assert not set(in_any_order(*train)) & set(in_any_order(*test))
    # The victim that comes with the package was trained on exactly these.
    assert digest(train).startswith("046d37b6")
    assert digest(test).startswith("52c56a0e")


@pytest.mark.parametrize("split", ["train", "test"])
def test_colour_digits_are_the_digits_in_light_ink_on_dark_paper(split):
    gray, colour = datasets.load("digits", split), datasets.load("colour_digits", split)
    np.testing.assert_array_equal(colour.labels, gray.labels)
    ink, paper = (gray.images == level for level in (255, 0))
    assert colour.images[np.broadcast_to(ink, colour.images.shape)].min() >= 160
    assert colour.images[np.broadcast_to(paper, colour.images.shape)].max() < 96
    both = np.flatnonzero(ink.any(axis=(1, 2, 3)) & paper.any(axis=(1, 2, 3)))[:2]
    for where in (ink[..., 0], paper[..., 0]):
        one, other = (colour.images[i][where[i]] for i in both)
        assert (one == one[0]).all()
        assert (one[0] != other[0]).any()
    info = datasets.describe("colour_digits")
    pixels = colour.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(axis=0), info.mean, atol=0.02)
    np.testing.assert_allclose(pixels.std(axis=0), info.std, atol=0.02)
    same = {"train": "8777c90c", "test": "148ca90d"}[split]
    assert digest(colour).startswith(same)


def test_digits_can_still_be_read_by_their_labels():
    images, labels = datasets.load("digits", "train")
    means = np.stack([images[labels == k].mean(axis=0) for k in range(10)])
    test = datasets.load("digits", "test")
    distances = ((test.images[:, None].astype(float) - means) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == test.labels).mean() > 0.85


@pytest.mark.parametrize("num_classes", [10, 100])
def test_noise_is_the_same_every_time_and_fits_its_description(num_classes):
    name = f"noise{num_classes}"
    test = datasets.load(name, "test")
    assert digest(test) == digest(datasets.load(name, "test"))
    assert digest(test) != digest(datasets.load(name, "train"))
    assert test.images.shape == (100, 32, 32, 3)
    assert test.labels.max() > num_classes * 3 / 4
    assert datasets.describe(name).num_classes == num_classes


def test_known_data_sets_are_described_without_any_file():
    cifar = datasets.describe("cifar100")
    assert (cifar.num_classes, cifar.channels) == (100, 3)
    assert cifar.mean == (0.4914, 0.4822, 0.4465)
    assert cifar.std == (0.2023, 0.1994, 0.2010)
    assert datasets.describe("svhn") == datasets.Info(
        10, 3, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    )
    gray = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530), "digits": (0.5, 0.5)}
    for name, (mean, std) in gray.items():
        assert datasets.describe(name) == datasets.Info(10, 1, (mean,), (std,))


def test_importing_the_module_imports_neither_tfds_nor_sklearn():
    code = (
        "import sys; from disguide_jax.files import datasets; "
        "datasets.load('noise10', 'test'); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"tensorflow_datasets", "tensorflow", "sklearn", "torch"}


# .npz


def test_an_npz_describes_a_data_set_of_ones_own(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays(32, 32, 3, num_classes=4))
    assert datasets.describe("mine", str(tmp_path)) == datasets.Info(4, 3, (0.5,) * 3, (0.5,) * 3)
    np.savez(tmp_path / "gray.npz", **arrays(32, 32))
    assert datasets.describe("gray", str(tmp_path)) == datasets.Info(10, 1, (0.5,), (0.5,))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_as_it_was_written(tmp_path, save):
    written = arrays(32, 32, 3)
    save(tmp_path / "mine.npz", **written)
    for split in ("train", "test"):
        read = datasets.load("mine", split, str(tmp_path))
        np.testing.assert_array_equal(read.images, written[f"{split}_images"])
        np.testing.assert_array_equal(read.labels, written[f"{split}_labels"])
        assert read.labels.dtype == np.int32


def test_data_dir_is_the_current_directory_when_empty(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays(32, 32, 3))
    assert datasets.describe("mine").channels == 3
    assert len(datasets.load("mine", "test").images) == NUM_TEST


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1)])
def test_images_of_28x28_get_a_black_margin(tmp_path, shape):
    written = arrays(*shape)
    np.savez(tmp_path / "small.npz", **written)
    images, _ = datasets.load("small", "test", str(tmp_path))
    assert images.shape == (NUM_TEST, 32, 32, 1)
    inner = written["test_images"].reshape(-1, 28, 28, 1)
    np.testing.assert_array_equal(images[:, 2:-2, 2:-2], inner)
    assert images.sum(dtype=int) == inner.sum(dtype=int)


def test_an_npz_comes_before_anything_else_of_that_name(tmp_path, monkeypatch):
    for name, shape in {"digits": (32, 32), "cifar10": (32, 32, 3)}.items():
        shrink(monkeypatch, name)
        np.savez(tmp_path / f"{name}.npz", **arrays(*shape))
        assert len(datasets.load(name, "test", str(tmp_path)).images) == NUM_TEST


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist", "fashion_mnist"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_known_data_set_with_images_missing_is_refused(tmp_path, name, split):
    shape = (32, 32, 3) if datasets.describe(name).channels == 3 else (28, 28)
    np.savez(tmp_path / f"{name}.npz", **arrays(*shape))
    number = {"cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257}.get(name, 60_000)
    if split == "test":
        number = 26_032 if name == "svhn" else 10_000
    with pytest.raises(UserError, match=rf"{name}.npz, {split} split.* must be {number:,} of"):
        datasets.load(name, split, str(tmp_path))


def test_only_the_split_that_is_asked_for_must_be_there(tmp_path):
    written = {k: v for k, v in arrays(32, 32, 3).items() if "train" not in k}
    np.savez(tmp_path / "mine.npz", **written)
    assert datasets.describe("mine", str(tmp_path)).num_classes == 10
    assert len(datasets.load("mine", "test", str(tmp_path)).images) == NUM_TEST
    with pytest.raises(UserError, match=r"mine.npz: it has no train_images and no train_labels"):
        datasets.load("mine", "train", str(tmp_path))


WRONG = {
    "float images": ({"test_images": np.full((7, 32, 32, 3), np.nan)}, "float64.* uint8"),
    "other size": (
        {"test_images": np.zeros((7, 30, 30, 3), np.uint8)},
        r"30, 30.*of 4 from 8 to 224",
    ),
    "two channels": ({"test_images": np.zeros((7, 32, 32, 2), np.uint8)}, "2 channels"),
    "flat images": ({"test_images": np.zeros((7, 3072), np.uint8)}, r"\[7, 3072\]"),
    "no images": (
        {"test_images": np.zeros((0, 32, 32, 3), np.uint8), "test_labels": np.zeros(0, int)},
        "0 images",
    ),
    "fewer labels": ({"test_labels": np.zeros(6, int)}, "7 images and 6 labels"),
    "fewer images": ({"test_images": np.zeros((6, 32, 32, 3), np.uint8)}, "6 images and 7"),
    "float labels": ({"test_labels": np.zeros(7)}, "float64.*integers"),
    "labels in a column": ({"test_labels": np.zeros((7, 1), int)}, r"\[7, 1\]"),
    "label too large": ({"test_labels": np.full(7, 10)}, "10 to 10.* 0 and 9"),
    "negative label": ({"test_labels": np.full(7, -1)}, "-1 to -1"),
    "no classes": ({"classes": None}, "classes"),
    "number of classes": ({"classes": np.array(10)}, "classes"),
    "pickled": ({"test_labels": np.array([{}] * 7)}, "damaged, or not an .npz of plain"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_are_not_images_and_labels_are_refused(tmp_path, case):
    changes, message = WRONG[case]
    written = {k: v for k, v in (arrays(32, 32, 3) | changes).items() if v is not None}
    np.savez(tmp_path / "mine.npz", **written)
    with pytest.raises(UserError, match=rf"(?s)mine.npz.*{message}"):
        datasets.load("mine", "test", str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "junk", "text", "npy", "directory"])
def test_a_damaged_npz_is_named(tmp_path, damage):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(32, 32, 3))
    whole = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        flipped = bytearray(whole)
        flipped[whole.index(b"test_images.npy") + 2000] ^= 1
        damaged = {"cut": whole[:-100], "flip": flipped, "junk": bytes(range(256)) * 99}
        path.write_bytes(damaged.get(damage, b"" if damage == "empty" else b"images"))
    with pytest.raises(UserError, match=r"mine.npz: damaged, or not an .npz"):
        datasets.load("mine", "test", str(tmp_path))


@pytest.mark.parametrize("name", ["", "cifar", "nowhere/mine", "x" * 300, "a\0b"])
def test_an_unknown_name_lists_the_known_ones_and_the_file_that_would_do(tmp_path, name):
    for ask in (datasets.describe, lambda *args: datasets.load(args[0], "test", args[1])):
        with pytest.raises(UserError, match="unknown data set") as error:
            ask(name, str(tmp_path))
        assert "fashion_mnist" in str(error.value)
        assert str(tmp_path / f"{name}.npz") in str(error.value)
        assert "train_images, train_labels, test_images, test_labels" in str(error.value)


# idx, the format of MNIST


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("fashion_mnist", "."),
        ("fashion_mnist", "raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("mnist", "MNIST/raw"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_wherever_torchvision_or_debian_puts_them(
    tmp_path, monkeypatch, name, folder, suffix
):
    shrink(monkeypatch, name)
    written = arrays(28, 28)
    write_idx(tmp_path / "data" / folder, written, suffix=suffix)
    for split in ("train", "test"):
        images, labels = datasets.load(name, split, str(tmp_path / "data"))
        np.testing.assert_array_equal(images[:, 2:-2, 2:-2, 0], written[f"{split}_images"])
        np.testing.assert_array_equal(labels, written[f"{split}_labels"])


def test_without_a_data_dir_the_place_of_the_operating_system_is_the_last_but_tfds(
    tmp_path, monkeypatch
):
    shrink(monkeypatch, "fashion_mnist")
    here, system = arrays(28, 28), arrays(28, 28, seed=1)
    write_idx(tmp_path / "system", system)
    monkeypatch.setitem(idx.SYSTEM, "fashion_mnist", tmp_path / "system")
    images, _ = datasets.load("fashion_mnist", "test")
    np.testing.assert_array_equal(images[:, 2:-2, 2:-2, 0], system["test_images"])
    write_idx(tmp_path / "raw", here)
    images, _ = datasets.load("fashion_mnist", "test")
    np.testing.assert_array_equal(images[:, 2:-2, 2:-2, 0], here["test_images"])


@pytest.mark.parametrize("damage", ["cut", "cut.gz", "not gzip", "axes", "absent", "fewer labels"])
def test_a_damaged_idx_file_is_named(tmp_path, monkeypatch, damage):
    shrink(monkeypatch, "fashion_mnist")
    written = arrays(28, 28)
    if damage == "fewer labels":
        written["test_labels"] = written["test_labels"][:-1]
    write_idx(tmp_path / "raw", written, suffix=".gz" if damage == "cut.gz" else "")
    path = next((tmp_path / "raw").glob("t10k-images*"))
    message = path.name
    if damage.startswith("cut"):
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "not gzip":
        path.rename(f"{path}.gz")
    elif damage == "axes":
        labels = next((tmp_path / "raw").glob("t10k-labels*"))
        path.write_bytes(labels.read_bytes())
    elif damage == "absent":
        path.unlink()
    else:
        message = "7 images and 6 labels"
    with pytest.raises(UserError, match=message):
        datasets.load("fashion_mnist", "test", str(tmp_path))


# TFDS


def prepare(name: str, images: dict[str, tuple[np.ndarray, np.ndarray]], out) -> None:
    """Makes what TFDS prepares from a download, without TensorFlow."""
    import tensorflow_datasets as tfds

    base = type(tfds.builder(name, data_dir=out))

    def generate(self, split):
        for i, (image, label) in enumerate(zip(*images[split], strict=True)):
            example = {"image": png(image), "label": int(label)}
            yield i, example | ({"id": f"{split}_{i}"} if "id" in self.info.features else {})

    with tfds.core.registered.skip_registration():
        prepared = type(
            "Prepared",
            (base,),
            {
                "name": base.name,
                "_split_generators": lambda self, _: {k: generate(self, k) for k in images},
                "_generate_examples": generate,
            },
        )
    prepared(data_dir=out, file_format="array_record").download_and_prepare()


def splits(written: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {k: (written[f"{k}_images"], written[f"{k}_labels"]) for k in ("train", "test")}


@pytest.fixture(scope="module")
def tiny_cifar(tmp_path_factory) -> pathlib.Path:
    """A prepared CIFAR-10 of a few images: `arrays(32, 32, 3)`."""
    out = tmp_path_factory.mktemp("tfds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what preparing warns of is not the program's
        prepare("cifar10", splits(arrays(32, 32, 3)), out)
    return out


@pytest.fixture
def data_dir(tiny_cifar, tmp_path, monkeypatch) -> pathlib.Path:
    """A copy of it to damage, which counts as whole."""
    shrink(monkeypatch, "cifar10")
    shutil.copytree(tiny_cifar, tmp_path / "tfds")
    return tmp_path / "tfds"


def shard(data_dir: pathlib.Path, split: str = "test") -> pathlib.Path:
    (path,) = data_dir.glob(f"cifar10/*/cifar10-{split}.array_record*")
    return path


@pytest.mark.parametrize("split", ["train", "test"])
def test_tfds_gives_every_image_with_its_label(data_dir, split):
    read = datasets.load("cifar10", split, str(data_dir))
    written = splits(arrays(32, 32, 3))[split]
    assert read.images.shape[1:] == (32, 32, 3)
    assert in_any_order(*read) == in_any_order(*written)
    assert read.labels.dtype == np.int32


@pytest.mark.filterwarnings("ignore")
def test_tfds_mnist_gets_its_margin(tmp_path, monkeypatch):
    shrink(monkeypatch, "mnist")
    written = splits(arrays(28, 28, 1))
    prepare("mnist", written, tmp_path)
    read = datasets.load("mnist", "test", str(tmp_path))
    assert read.images.shape == (NUM_TEST, 32, 32, 1)
    assert in_any_order(read.images[:, 2:-2, 2:-2], read.labels) == in_any_order(*written["test"])


def test_a_tfds_directory_is_found_in_the_default_place(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(datasets.load("cifar10", "test").images) == NUM_TEST


def test_the_folders_of_tfds_themselves_are_places_and_the_newest_version_is_read(data_dir):
    (folder,) = data_dir.glob("cifar10/*")
    for place in (data_dir / "cifar10", folder):
        assert len(datasets.load("cifar10", "test", str(place)).images) == NUM_TEST
    for name in ("3.0.10", "3.0.9", "incomplete.ABC_4.0.0"):
        (data_dir / "cifar10" / name).mkdir()
    assert tfds.find("cifar10", str(data_dir)) == data_dir / "cifar10/3.0.10"
    folder.rename(data_dir / "elsewhere")
    (data_dir / "cifar10/3.0.10").rmdir()
    (data_dir / "elsewhere").rename(data_dir / "cifar10/2.9.0")  # older than TFDS's own
    (data_dir / "cifar10/3.0.9").rmdir()
    assert len(datasets.load("cifar10", "test", str(data_dir)).images) == NUM_TEST


def test_an_npz_comes_before_a_tfds_directory(data_dir):
    other = arrays(32, 32, 3, seed=1)
    np.savez(data_dir / "cifar10.npz", **other)
    read = datasets.load("cifar10", "test", str(data_dir))
    np.testing.assert_array_equal(read.images, other["test_images"])


def test_an_incomplete_tfds_directory_is_refused(tiny_cifar):
    with pytest.raises(UserError, match=r"12 images .* must be 50,000 of each") as error:
        datasets.load("cifar10", "train", str(tiny_cifar))
    assert str(tiny_cifar / "cifar10") in str(error.value)


def not_a_png(data_dir):
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    source = tfds.builder("cifar10", data_dir=data_dir).as_data_source(
        "test", decoders={"image": tfds.decode.SkipDecoding()}
    )
    records = [source.data_source[i] for i in range(len(source))]
    image = source[3]["image"]
    records[3] = records[3].replace(image, image[:1000] + bytes(len(image) - 1000))
    writer = ArrayRecordWriter(str(shard(data_dir)), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def fewer_records(data_dir):
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    reader = ArrayRecordReader(str(shard(data_dir)))
    records = reader.read_all()
    reader.close()
    writer = ArrayRecordWriter(str(shard(data_dir)), "group_size:1")
    for record in records[:-1]:
        writer.write(record)
    writer.close()


def as_tfrecord(data_dir):
    info = shard(data_dir).with_name("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def flip(data_dir):
    damaged = bytearray(shard(data_dir).read_bytes())
    at = damaged.index(b"IDAT") + 1000
    damaged[at] ^= 1
    shard(data_dir).write_bytes(damaged)


def half(data_dir):
    whole = shard(data_dir).read_bytes()
    shard(data_dir).write_bytes(whole[: len(whole) // 2])


def beside(data_dir, name):
    return shard(data_dir).with_name(name)


DAMAGE = {
    "no shard": (lambda d: shard(d).unlink(), "cifar10-test.array_record-00000"),
    "half a shard": (half, "cifar10-test.array_record-00000"),
    "empty shard": (lambda d: shard(d).write_bytes(b""), "cifar10-test.array_record-00000"),
    "flipped bit": (flip, "cifar10-test.array_record-00000"),
    "fewer records": (fewer_records, "image 6 of cifar10-test.array_record-00000"),
    "not a PNG": (not_a_png, "image 3 of cifar10-test.array_record-00000"),
    "no info": (lambda d: beside(d, "dataset_info.json").unlink(), "TFDS cannot read it"),
    "half an info": (
        lambda d: beside(d, "dataset_info.json").write_text('{"name": "ci'),
        "TFDS cannot read it",
    ),
    "tfrecord": (as_tfrecord, "prepared as tfrecord.*another data_dir"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_tfds_directory_is_named_with_the_file(data_dir, case):
    damage, message = DAMAGE[case]
    damage(data_dir)
    with pytest.raises(UserError, match=f"(?s){message}") as error:
        datasets.load("cifar10", "test", str(data_dir))
    assert str(data_dir) in str(error.value)


def pretend_tensorflow_is(monkeypatch, installed: bool) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: installed if name == "tensorflow" else find(name)
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist", "fashion_mnist"])
def test_what_is_not_there_and_cannot_be_prepared_says_what_to_do(tmp_path, monkeypatch, name):
    pretend_tensorflow_is(monkeypatch, False)
    with pytest.raises(UserError) as error:
        datasets.load(name, "test", str(tmp_path / "nowhere"))
    for part in (
        str(tmp_path / f"nowhere/{name}.npz"),
        str(tmp_path / f"nowhere/{tfds.NAMES[name]}"),
        str(tmp_path / f"nowhere/{name}/test/CLASS/*.png"),
        f"there is no folder {tmp_path / 'nowhere'}",
        "pip install 'disguide_jax[data]'",
        "train_images, train_labels, test_images, test_labels",
    ):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []


def replace_download(monkeypatch, download_and_prepare) -> None:
    import tensorflow_datasets as tfds

    pretend_tensorflow_is(monkeypatch, True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)


def test_the_first_use_prepares_where_tensorflow_is_installed(tiny_cifar, tmp_path, monkeypatch):
    def download_and_prepare(self, *, file_format):
        self.info.set_file_format(file_format, override=True)  # as the real one does
        shutil.copytree(tiny_cifar / "cifar10", tmp_path / "new/cifar10")
        self.info.read_from_directory(self.data_path)

    shrink(monkeypatch, "cifar10")
    replace_download(monkeypatch, download_and_prepare)
    assert len(datasets.load("cifar10", "test", str(tmp_path / "new")).images) == NUM_TEST


def test_a_failing_download_is_reported_with_the_alternative(tmp_path, monkeypatch):
    def download_and_prepare(self, *, file_format):
        raise ConnectionError("no route to host")

    replace_download(monkeypatch, download_and_prepare)
    with pytest.raises(UserError, match=r"(?s)cifar10: TFDS .*no route to host.*cifar10\.npz"):
        datasets.load("cifar10", "test", str(tmp_path))


# The real images


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorflow_datasets")
def test_real_cifar10_is_the_same_through_npz_and_tfds(shared, tmp_path):
    unpack = runpy.run_path(str(shared / "data/unpack.py"))
    real = unpack["load"]("cifar10")
    np.savez(tmp_path / "cifar10.npz", **real)
    for split in ("train", "test"):
        read = datasets.load("cifar10", split, str(tmp_path))
        np.testing.assert_array_equal(read.images, real[f"{split}_images"])
        np.testing.assert_array_equal(read.labels, real[f"{split}_labels"])

    for name in ("train_images", "train_labels"):  # to prepare them all takes half a minute
        real[name] = real[name][:100]
    unpack["write_tfds"]("cifar10", real, tmp_path / "tfds")
    with pytest.raises(UserError, match=r"100 images .* must be 50,000"):
        datasets.load("cifar10", "train", str(tmp_path / "tfds"))
    read = datasets.load("cifar10", "test", str(tmp_path / "tfds"))
    written = real["test_images"], real["test_labels"]
    assert in_any_order(*read) == in_any_order(*written)


@pytest.mark.slow
def test_real_cifar100_has_all_classes_alike_and_may_lack_its_training_images(shared, tmp_path):
    unpack = runpy.run_path(str(shared / "data/unpack.py"))
    real = unpack["load"]("cifar100")
    np.savez(tmp_path / "cifar100.npz", **real)
    for split, each in (("train", 500), ("test", 100)):
        if f"{split}_labels" in real:
            labels = datasets.load("cifar100", split, str(tmp_path)).labels
            assert np.bincount(labels).tolist() == [each] * 100
    test_only = {name: real[name] for name in ("test_images", "test_labels", "classes")}
    np.savez(tmp_path / "cifar100.npz", **test_only)
    assert len(datasets.load("cifar100", "test", str(tmp_path)).labels) == 10_000
    with pytest.raises(UserError, match="no train_images"):
        datasets.load("cifar100", "train", str(tmp_path))
