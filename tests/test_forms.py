"""Data as it lies on users' disks: torchvision's folders, archives, .mat files, images by class."""

import collections
import errno
import io
import os
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
import scipy.io
from conftest import load_script
from disk import (
    NUM_TEST,
    arrays,
    batch,
    pack,
    shrink,
    write_cifar,
    write_folders,
    write_idx,
    write_svhn,
)
from PIL import Image

from disguide_jax.errors import UserError, exit_status
from disguide_jax.files import datasets

pytestmark = pytest.mark.usefixtures("nowhere_else")


def check(name: str, data_dir: pathlib.Path | str, written: dict[str, np.ndarray]) -> None:
    """Holds that both splits are read as they were written, in their order."""
    for split in ("train", "test"):
        images, labels = datasets.load(name, split, str(data_dir))
        np.testing.assert_array_equal(images, written[f"{split}_images"])
        np.testing.assert_array_equal(labels, written[f"{split}_labels"])
        assert labels.dtype == np.int32


def refused(name: str, data_dir: pathlib.Path | str, split: str = "test") -> str:
    """The one message about what cannot be read."""
    with pytest.raises(UserError) as error:
        datasets.load(name, split, str(data_dir))
    return str(error.value)


# CIFAR's pickles

CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> pathlib.Path:
    """A root of torchvision's with a small CIFAR-10, which counts as whole."""
    shrink(monkeypatch, "cifar10")
    write_cifar(tmp_path / "root/cifar-10-batches-py", arrays(32, 32, 3))
    return tmp_path / "root"


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("place", ["root", "folder", "archive", "archive itself", "home"])
def test_cifar_is_read_from_the_root_the_folder_and_the_archive(tmp_path, monkeypatch, name, place):
    shrink(monkeypatch, name)
    written = arrays(32, 32, 3, num_classes=int(name.removeprefix("cifar")))
    folder = tmp_path / "root" / CIFAR[name]
    write_cifar(folder, written, name=name)
    archive = tmp_path / "packed" / f"{name.replace('cifar', 'cifar-')}-python.tar.gz"
    archive.parent.mkdir()
    pack(archive, folder)
    check(
        name,
        {
            "root": tmp_path / "root",
            "folder": folder,
            "archive": tmp_path / "packed",
            "archive itself": archive,
            "home": "~/root",
        }[place],
        written,
    )


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_batch_that_numpy_2_has_written_is_read_in_every_protocol(cifar, protocol, order):
    written = arrays(32, 32, 3, seed=1)
    content = batch(written["test_images"], written["test_labels"], protocol=protocol, order=order)
    (cifar / "cifar-10-batches-py/test_batch").write_bytes(content)
    check("cifar10", cifar, arrays(32, 32, 3) | {k: written[k] for k in written if "test" in k})


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_a_batch_that_python_2_has_written_is_read(cifar, module):
    """The bytes that the downloaded files have: strings are `U` and `T`, tuples are numbered."""
    written = arrays(32, 32, 3)
    planes = written["test_images"].transpose(0, 3, 1, 2).tobytes()
    labels = b"".join(b"K" + bytes([label]) for label in written["test_labels"])
    content = (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x06a nameq\x03U\x06labelsq\x04]q\x05("
        + labels
        + b"eU\x04dataq\x06c" + module + b".multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
        + b"K\x00\x85U\x01b\x87Rq\x09(K\x01K" + bytes([NUM_TEST]) + b"M\x00\x0c\x86"
        + b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff"
        + b"\xff\xff\xffK\x00tb\x89T" + len(planes).to_bytes(4, "little") + planes
        + b"tbU\tfilenamesq\x0c]q\x0dU\x05a.pngau."
    )  # fmt: skip
    (cifar / "cifar-10-batches-py/test_batch").write_bytes(content)
    check("cifar10", cifar, written)


class Calling:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


PATH = "touched"
MALICIOUS = {
    "shell": Calling(os.system, f"touch {PATH}"),
    "eval": Calling(eval, f"open({PATH!r}, 'w')"),
    "getattr": Calling(getattr, 1, "real"),
    "an array of objects": np.array([Calling(os.system, f"touch {PATH}")], object),
    "numpy's own": Calling(np.fromfile, "test_batch"),
    "a harmless class": collections.Counter("abc"),
}


@pytest.mark.parametrize("case", MALICIOUS)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_nothing_in_a_pickle_is_executed(cifar, case, protocol):
    held = {"labels": [0] * NUM_TEST, "data": MALICIOUS[case]}
    path = cifar / "cifar-10-batches-py/test_batch"
    path.write_bytes(pickle.dumps(held, protocol))
    message = refused("cifar10", cifar)
    assert message.startswith(f"{path}: damaged, or no file of cifar10: ")
    assert "\n" not in message
    assert not pathlib.Path(PATH).exists()


def set_attributes_of(name: bytes) -> bytes:
    """A pickle that tries to change what it is given for a name."""
    return b"\x80\x02c" + name.replace(b".", b"\n", 1) + b"\n}X\x04\x00\x00\x00codeK\x01sb."


@pytest.mark.parametrize("name", [b"_codecs.encode", b"numpy.dtype", b"numpy.ndarray"])
def test_a_pickle_cannot_change_the_reader(cifar, name):
    path = cifar / "cifar-10-batches-py/test_batch"
    whole = path.read_bytes()
    path.write_bytes(set_attributes_of(name))
    assert "damaged" in refused("cifar10", cifar)
    path.write_bytes(whole)
    check("cifar10", cifar, arrays(32, 32, 3))


def held(**changes) -> bytes:
    """A batch with other content."""
    data = np.zeros((NUM_TEST, 3072), np.uint8)
    return pickle.dumps({"labels": [0] * NUM_TEST, "data": data} | changes, 2)


WHOLE = held()
DAMAGED = {
    "empty": (b"", "damaged"),
    "cut": (WHOLE[:-1000], "damaged"),
    "text": (b"<!DOCTYPE html>", "damaged"),
    "huge number": (b"\x80\x02Nr\xff\xff\xff\xff.", "numbers an object"),
    "deep tuples": (b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.", "200,000 tuples"),
    "list": (pickle.dumps([1, 2]), "holds no dict"),
    "no data": (pickle.dumps({"labels": [1]}), "no array of data"),
    "no labels": (held(labels=None), "no list of labels"),
    "labels of text": (held(labels=["cat"] * NUM_TEST), "not all integers"),
    "large labels": (held(labels=[10] * NUM_TEST), "go from 10 to 10"),
    "huge labels": (held(labels=[2**70] * NUM_TEST), "damaged"),
    "fewer labels": (held(labels=[1]), "7 images and 1 labels"),
    "floats": (held(data=np.zeros((NUM_TEST, 3072), np.float32)), "not bytes"),
    "transposed": (held(data=np.zeros((3072, NUM_TEST), np.uint8)), r"[3072, 7]"),
    "bytes": (held(data=b"\0" * 3072 * NUM_TEST), "no array"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_batch_is_named(cifar, case):
    content, message = DAMAGED[case]
    (cifar / "cifar-10-batches-py/test_batch").write_bytes(content)
    said = refused("cifar10", cifar)
    assert message in said
    assert str(cifar / "cifar-10-batches-py") in said


def test_an_absent_batch_is_named_and_not_needed_for_the_other_split(cifar):
    (cifar / "cifar-10-batches-py/data_batch_3").unlink()
    assert len(datasets.load("cifar10", "test", str(cifar)).labels) == NUM_TEST
    assert "there is no data_batch_3 in it" in refused("cifar10", cifar, "train")


def test_known_data_sets_must_have_all_images_in_every_form(tmp_path):
    written = arrays(32, 32, 3)
    write_cifar(tmp_path / "cifar-10-batches-py", written)
    write_svhn(tmp_path, written)
    write_folders(tmp_path / "cifar100", pets(32, 32, 3))
    for name, number in {"cifar10": "10,000", "svhn": "26,032", "cifar100": "10,000"}.items():
        assert f"there are 7 images and 7 labels, and there must be {number} of each" in refused(
            name, tmp_path
        )


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **changes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_an_archive_are_not_followed_and_nothing_is_unpacked(cifar, tmp_path, kind):
    batch_path = cifar / "cifar-10-batches-py/test_batch"
    folder = tmp_path / "packed"
    folder.mkdir()
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        add(tar, "cifar-10-batches-py/test_batch", type=kind, linkname=str(batch_path))
        add(tar, "../outside", b"x")
        add(tar, "other/test_batch", batch_path.read_bytes())
        add(tar, "cifar-10-batches-py/../cifar-10-batches-py/test_batch", batch_path.read_bytes())
    assert "there is no test_batch in it" in refused("cifar10", folder)
    assert [path.name for path in folder.iterdir()] == ["cifar-10-python.tar.gz"]
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "html", "huge", "folder"])
def test_a_damaged_archive_is_named(cifar, tmp_path, damage):
    archive = tmp_path / "cifar-10-python.tar.gz"
    pack(archive, cifar / "cifar-10-batches-py")
    content = archive.read_bytes()
    if damage == "huge":
        with tarfile.open(archive, "w:gz") as tar:
            member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
            member.size = 2**40
            tar.fileobj.write(member.tobuf())
    elif damage == "folder":
        archive.unlink()
        archive.mkdir()
    else:
        archive.write_bytes({"cut": content[:2000], "empty": b"", "html": b"<html>"}[damage])
    said = refused("cifar10", tmp_path)
    assert str(archive) in said
    assert "\n" not in said


# SVHN


@pytest.mark.parametrize("folder", ["", "SVHN", "svhn"])
def test_svhn_is_read_from_its_mat_files_and_10_is_the_digit_0(tmp_path, monkeypatch, folder):
    shrink(monkeypatch, "svhn")
    written = arrays(32, 32, 3)
    assert 0 in written["train_labels"]
    write_svhn(tmp_path / "data" / folder, written)
    check("svhn", tmp_path / "data", written)


def as_other(path: pathlib.Path, **content) -> None:
    scipy.io.savemat(path, content)


MATS = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "html": (lambda path: path.write_bytes(b"<html>" * 100), "damaged"),
    "HDF5": (lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM"), "dam"),
    "no labels": (lambda path: as_other(path, X=np.zeros((32, 32, 3, 7), np.uint8)), "'y'"),
    "order": (lambda path: as_other(path, X=np.zeros((7, 32, 32, 3)), y=[1] * 7), r"\[7, 32"),
    "full numbers": (
        lambda path: as_other(path, X=np.zeros((32, 32, 3, 7)), y=np.ones(7, int)),
        "float64; they must be uint8",
    ),
}


@pytest.mark.parametrize("case", MATS)
def test_a_damaged_mat_file_is_named(tmp_path, monkeypatch, case):
    shrink(monkeypatch, "svhn")
    write_svhn(tmp_path, arrays(32, 32, 3))
    damage, message = MATS[case]
    damage(tmp_path / "test_32x32.mat")
    with pytest.raises(UserError, match=rf"(?s){tmp_path}.*{message}"):
        datasets.load("svhn", "test", str(tmp_path))


def test_an_absent_mat_file_is_named(tmp_path):
    write_svhn(tmp_path, arrays(32, 32, 3))
    (tmp_path / "train_32x32.mat").unlink()
    assert refused("svhn", tmp_path, "train") == f"{tmp_path}: there is no train_32x32.mat"


# Images by class


def by_class(written: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In the order in which folders have them: by class, then by name."""
    orders = {s: np.argsort(written[f"{s}_labels"], kind="stable") for s in ("train", "test")}
    return {
        f"{split}_{kind}": written[f"{split}_{kind}"][order]
        for split, order in orders.items()
        for kind in ("images", "labels")
    }


def pets(*shape: int) -> dict[str, np.ndarray]:
    """Of three classes, each of which has images; names of files sort as numbers do up to 9."""
    written = arrays(*shape, num_classes=3)
    for split, num in (("train", 10), ("test", NUM_TEST)):
        written[f"{split}_images"] = written[f"{split}_images"][:num]
        written[f"{split}_labels"] = np.arange(num) * 2 % 3
    return written | {"classes": np.array(["cat", "dog", "emu"])}


@pytest.mark.parametrize("shape", [(32, 32, 3), (48, 48), (8, 8, 3)])
@pytest.mark.parametrize("below", [True, False])
def test_folders_of_images_describe_a_data_set_of_ones_own(tmp_path, shape, below):
    written = pets(*shape)
    write_folders(tmp_path / "data/mine", written)
    (tmp_path / "data/mine/test/.hidden").mkdir()
    (tmp_path / "data/mine/test/cat/notes.txt").write_text("no image")
    (tmp_path / "data/mine/test/cat/._0.png").write_text("no image")
    data_dir = tmp_path / ("data" if below else "data/mine")
    channels = 3 if len(shape) == 3 else 1
    half = (0.5,) * channels
    info = datasets.describe("mine", str(data_dir))
    assert info == datasets.Info(3, channels, half, half, shape[0])
    expected = by_class(written)
    for split in ("train", "test"):
        expected[f"{split}_images"] = expected[f"{split}_images"].reshape(
            -1, shape[0], shape[0], channels
        )
    check("mine", data_dir, expected)


def test_describing_folders_reads_one_image(tmp_path):
    write_folders(tmp_path / "mine", pets(32, 32, 3))
    for path in (tmp_path / "mine").glob("*/*/*.png"):
        if path != tmp_path / "mine/test/cat/0.png":
            path.write_bytes(b"damaged")
    assert datasets.describe("mine", "").channels == 3


def test_jpegs_do_as_well_and_28x28_get_their_margin(tmp_path):
    written = pets(28, 28)
    for split in ("train", "test"):
        written[f"{split}_images"] = np.full_like(written[f"{split}_images"], 77)
    write_folders(tmp_path / "mine", written, kind="JPEG")
    images, _ = datasets.load("mine", "test", str(tmp_path))
    assert images.shape == (NUM_TEST, 32, 32, 1)
    assert (images[:, 2:-2, 2:-2] == 77).all()
    assert images.sum(dtype=int) == 77 * NUM_TEST * 28 * 28


def test_only_the_split_that_is_asked_for_must_be_there(tmp_path):
    write_folders(tmp_path / "mine", pets(32, 32))
    (tmp_path / "mine/train").rename(tmp_path / "mine/elsewhere")
    assert len(datasets.load("mine", "test", str(tmp_path)).labels) == NUM_TEST
    said = refused("mine", tmp_path, "train")
    assert said.startswith(f"{tmp_path / 'mine/train'}: there are no images CLASS/*.png")


def test_the_current_directory_must_be_asked_for(tmp_path):
    write_folders(tmp_path, pets(32, 32))
    assert "unknown data set" in refused("mine", "")
    assert len(datasets.load("mine", "test", ".").labels) == NUM_TEST


def image(*shape: int, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    made = Image.fromarray(np.zeros(shape, np.uint8))
    (made.convert(mode) if mode else made).save(buffer, "png")
    return buffer.getvalue()


WHOLE_IMAGE = image(32, 32, 3)
OTHERS = {
    "size": (image(30, 32, 3), "the image is 32x30 RGB, and .*cat/0.png is 32x32 RGB"),
    "gray": (image(32, 32), "the image is 32x32 gray, and .*cat/0.png is 32x32 RGB"),
    "alpha": (image(32, 32, 3, mode="RGBA"), "mode is RGBA; it must be gray .L. or RGB"),
    "palette": (image(32, 32, 3, mode="P"), "mode is P"),
    "16 bits": (image(32, 32, mode="I;16"), "mode is I;16"),
    "cut": (WHOLE_IMAGE[:-20], "damaged"),
    "empty": (b"", "damaged"),
    "bitmap": (b"BM" + bytes(100), "neither PNG nor JPEG"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_an_image_that_differs_is_named(tmp_path, case):
    write_folders(tmp_path / "mine", pets(32, 32, 3))
    path = tmp_path / "mine/test/dog/5.png"
    assert path.exists()
    content, message = OTHERS[case]
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: {'.*' + message}"):
        datasets.load("mine", "test", str(tmp_path))


@pytest.mark.parametrize("shape", [(30, 30, 3), (32, 36, 3), (4, 4), (300, 300)])
def test_images_of_a_size_that_nothing_takes_are_refused(tmp_path, shape):
    write_folders(tmp_path / "mine", pets(*shape))
    with pytest.raises(UserError, match=r"test/cat/0.png: the images are \[7, .* of 4 from 8"):
        datasets.describe("mine", str(tmp_path))


def test_classes_must_have_images_and_be_the_same_in_both_splits(tmp_path):
    write_folders(tmp_path / "mine", pets(32, 32))
    (tmp_path / "mine/train/fox").mkdir()
    assert refused("mine", tmp_path).startswith(f"{tmp_path}/mine/train/fox: there are no images")
    (tmp_path / "mine/train/fox/0.png").write_bytes(image(32, 32))
    said = refused("mine", tmp_path)
    assert said.startswith(f"{tmp_path}/mine/test: there is no folder fox")


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer"]
CIFAR10 += ["dog", "frog", "horse", "ship", "truck"]
FASHION = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat"]
FASHION += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


@pytest.mark.parametrize(
    ("name", "classes", "right"),
    [
        (
            "cifar10",
            [
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ],
            True,
        ),
        ("cifar10", [str(k) for k in range(10)], True),
        ("cifar10", [str(k) for k in range(1, 11)], False),
        ("cifar100", [f"{k:02}" for k in range(100)], True),
        ("cifar100", [str(k) for k in range(100)], False),
        ("fashion_mnist", FASHION, False),
        ("fashion_mnist", [f"{k}_{label}" for k, label in enumerate(FASHION)], True),
        (
            "mnist",
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
            False,
        ),
        ("svhn", [str(k) for k in range(10)], True),
    ],
)
def test_classes_of_known_data_sets_must_sort_as_their_labels(
    tmp_path, monkeypatch, name, classes, right
):
    known = datasets._KNOWN[name]._replace(num_test=len(classes))
    monkeypatch.setitem(datasets._KNOWN, name, known)
    for k, label in enumerate(classes):
        (tmp_path / "test" / label).mkdir(parents=True)
        content = image(28, 28) if known.info.channels == 1 else image(32, 32, 3)
        (tmp_path / "test" / label / f"{k}.png").write_bytes(content)
    if right:
        labels = datasets.load(name, "test", str(tmp_path)).labels
        np.testing.assert_array_equal(labels, range(len(classes)))
    else:
        assert "do not sort by name in the order of" in refused(name, tmp_path)


# Places


def test_one_message_lists_all_places_and_forms(tmp_path):
    places = {
        "cifar10": ["cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar10/VERSION"],
        "cifar100": ["cifar-100-python", "cifar-100-python.tar.gz", "cifar100/VERSION"],
        "svhn": ["test_32x32.mat", "svhn_cropped/VERSION"],
        "mnist": ["t10k-images-idx3-ubyte", "mnist/VERSION"],
        "fashion_mnist": ["t10k-images-idx3-ubyte", "fashion_mnist/VERSION"],
        "mine": [],
    }
    for name, own in places.items():
        said = refused(name, tmp_path)
        for place in (f"{name}.npz", *own, f"{name}/test/CLASS/*.png"):
            assert f"\n    {tmp_path / place}" in said


@pytest.mark.parametrize("name", ["cifar10", "mine"])
@pytest.mark.parametrize("file", ["there.npz", "not.npz", "cifar-10-python.tar.gz"])
def test_a_file_that_is_not_there_is_named_as_one(tmp_path, name, file):
    assert f"there is no file {tmp_path / file}" in refused(name, tmp_path / file)


def test_an_npz_itself_and_a_home_are_places(tmp_path):
    np.savez(tmp_path / "other.npz", **arrays(32, 32, 3, num_classes=4))
    for data_dir in (tmp_path / "other.npz", "other.npz", "~/other.npz"):
        assert datasets.describe("mine", str(data_dir)).num_classes == 4
        check("mine", data_dir, arrays(32, 32, 3, num_classes=4))
    at_hand = datasets.load("noise10", "test").images  # which no file of another name replaces
    np.testing.assert_array_equal(datasets.load("noise10", "test", "other.npz").images, at_hand)


def test_a_home_that_is_not_there_is_said():
    said = refused("mine", "~nobody-of-that-name/data")
    assert "~nobody-of-that-name/data: it begins with ~" in said


@pytest.mark.parametrize("name", ["cifar10", "svhn", "mnist", "mine"])
def test_links_in_a_circle_are_named(tmp_path, name):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    said = refused(name, tmp_path / "round")
    assert said.startswith(f"{tmp_path}/round")
    assert "Too many levels of symbolic links" in said
    assert "\n" not in said


INSIDE = {
    "cifar10": "cifar-10-batches-py/test_batch",
    "cifar100": "cifar-100-python.tar.gz",
    "svhn": "test_32x32.mat",
    "mnist": "MNIST/raw/t10k-images-idx3-ubyte",
    "mine": "mine/test/cat/0.png",
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_link_in_a_circle_inside_is_named(tmp_path, name):
    path = tmp_path / INSIDE[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path)
    said = refused(name, tmp_path)
    assert said == f"{path}: cannot be read: Too many levels of symbolic links"


@pytest.mark.parametrize("name", INSIDE)
def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch, name):
    path = tmp_path / INSIDE[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"secret")
    forbid(monkeypatch, path)
    assert refused(name, tmp_path) == f"{path}: cannot be read: Permission denied"


def forbid(monkeypatch, path: pathlib.Path) -> None:
    """Lets opening a file fail as it does for a user without the right; root always may."""
    opened = io.open

    def open_(file, *args, **kwargs):
        if str(file) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", open_)


def test_an_npz_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", **arrays(32, 32, 3))
    forbid(monkeypatch, tmp_path / "mine.npz")
    assert refused("mine", tmp_path) == f"{tmp_path}/mine.npz: cannot be read: Permission denied"


# Preparing one file


def prepare(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    script = load_script("prepare_data")
    monkeypatch.setattr("sys.argv", ["prepare_data.py", *arguments])
    status = exit_status(script.main)
    return status, "".join(capsys.readouterr())


def test_any_form_can_be_made_one_npz_that_is_the_same_data(tmp_path, monkeypatch, capsys):
    for name in ("cifar10", "svhn", "fashion_mnist"):
        shrink(monkeypatch, name)
    write_cifar(tmp_path / "cifar10/cifar-10-batches-py", arrays(32, 32, 3))
    write_svhn(tmp_path / "svhn", arrays(32, 32, 3))
    write_idx(tmp_path / "fashion_mnist/raw", arrays(28, 28))
    write_folders(tmp_path / "mine", pets(48, 48))
    for name in ("cifar10", "svhn", "fashion_mnist", "mine"):
        out = tmp_path / f"prepared-{name}.npz"
        said = prepare(monkeypatch, capsys, "--dataset", name, "--data_dir", name, str(out))
        assert said[0] == 0
        assert f"--config.data_dir={out}" in said[1]
        assert datasets.describe(name, str(out)) == datasets.describe(name, name)
        for split in ("train", "test"):
            one, other = (datasets.load(name, split, str(place)) for place in (name, out))
            assert datasets.fingerprint(one) == datasets.fingerprint(other)
    with np.load(tmp_path / "prepared-mine.npz") as file:
        assert file["classes"].tolist() == ["cat", "dog", "emu"]


def test_what_cannot_be_prepared_is_one_message_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    write_folders(tmp_path / "mine", pets(32, 32))
    (tmp_path / "mine/train").rename(tmp_path / "elsewhere")
    for arguments, message in (
        (["out.npz"], "train: there are no images"),
        (["--only", "test", "out"], "out: its name must end with .npz"),
        (["--only", "test", "nowhere/out.npz"], "nowhere/out.npz: cannot be written: No such"),
    ):
        status, said = prepare(monkeypatch, capsys, "--dataset", "mine", *arguments)
        assert (status, message in said) == (2, True), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "mine"]
    assert prepare(monkeypatch, capsys, "--dataset=mine", "--only=test", "out.npz")[0] == 0
    assert len(datasets.load("mine", "test", "out.npz").labels) == NUM_TEST
