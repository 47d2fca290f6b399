"""Small data sets in the forms in which they lie on disk, and the arrays that they hold."""

import gzip
import io
import pathlib
import pickle
import tarfile

import numpy as np
import scipy.io
from PIL import Image

from disguide_jax.files import datasets

NUM_TRAIN, NUM_TEST = 12, 7  # of the small stand-ins


def arrays(*shape: int, num_classes: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "train_images": rng.integers(0, 256, (NUM_TRAIN, *shape), np.uint8),
        "train_labels": rng.integers(0, num_classes, NUM_TRAIN).astype(np.uint8),
        "test_images": rng.integers(0, 256, (NUM_TEST, *shape), np.uint8),
        "test_labels": rng.integers(0, num_classes, NUM_TEST).astype(np.uint8),
        "classes": np.array([f"class {k}" for k in range(num_classes)]),
    }


def shrink(monkeypatch, name: str) -> None:
    """Lets a few images count as the whole of a known data set."""
    known = datasets._KNOWN[name]._replace(num_train=NUM_TRAIN, num_test=NUM_TEST)
    monkeypatch.setitem(datasets._KNOWN, name, known)


def in_any_order(images, labels) -> list[bytes]:
    return sorted(
        image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)
    )


def png(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "png")
    buffer.seek(0)
    return buffer


def write_idx(folder: pathlib.Path, written: dict[str, np.ndarray], *, suffix: str = ".gz") -> None:
    """MNIST's own files."""
    folder.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for kind in ("images", "labels"):
            array = written[f"{split}_{kind}"]
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            content = header + array.tobytes()
            content = gzip.compress(content) if suffix == ".gz" else content
            (folder / f"{prefix}-{kind}-idx{array.ndim}-ubyte{suffix}").write_bytes(content)


def batch(images, labels, key: str = "labels", protocol: int = 2, order: str = "C") -> bytes:
    """A file of CIFAR, as NumPy 2 writes it."""
    planes = np.array(images.transpose(0, 3, 1, 2).reshape(len(images), -1), order=order)
    held = {"batch_label": b"a batch", key: labels.tolist(), "data": planes}
    held["filenames"] = [b"%d.png" % i for i in range(len(images))]
    return pickle.dumps(held, protocol)


def write_cifar(folder: pathlib.Path, written: dict[str, np.ndarray], *, name="cifar10") -> None:
    """The folder that torchvision unpacks."""
    folder.mkdir(parents=True)
    if name == "cifar100":
        for split in ("train", "test"):
            images, labels = written[f"{split}_images"], written[f"{split}_labels"]
            (folder / split).write_bytes(batch(images, labels, "fine_labels"))
        return
    (folder / "test_batch").write_bytes(batch(written["test_images"], written["test_labels"]))
    parts = (np.array_split(written[f"train_{kind}"], 5) for kind in ("images", "labels"))
    for i, part in enumerate(zip(*parts, strict=True), start=1):
        (folder / f"data_batch_{i}").write_bytes(batch(*part))


def pack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """The archive that torchvision downloads."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)


def write_svhn(folder: pathlib.Path, written: dict[str, np.ndarray]) -> None:
    """SVHN's own files, in which the label of digit 0 is 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        labels = written[f"{split}_labels"][:, None]
        content = {
            "X": np.moveaxis(written[f"{split}_images"], 0, -1),
            "y": np.where(labels == 0, 10, labels).astype(np.uint8),
        }
        scipy.io.savemat(folder / f"{split}_32x32.mat", content, do_compression=True)


def write_folders(folder: pathlib.Path, written: dict[str, np.ndarray], *, kind="png") -> None:
    """An image a file, in a folder for each class and split."""
    for split in ("train", "test"):
        for name in written["classes"]:
            (folder / split / name).mkdir(parents=True)
        pairs = zip(written[f"{split}_images"], written[f"{split}_labels"], strict=True)
        for i, (image, label) in enumerate(pairs):
            path = folder / split / written["classes"][label] / f"{i}.{kind}"
            Image.fromarray(image.squeeze()).save(path)
