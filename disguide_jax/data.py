"""Data sets: victims are trained on them and clones tested on them, never trained.

| name                    | from                                                     |
|-------------------------|----------------------------------------------------------|
| digits                  | scikit-learn, always at hand: 8x8 scans resized to 32x32 |
| cifar10, cifar100, svhn | data_dir/NAME.npz, or TFDS (prepared in data_dir)        |
| mnist, fashion_mnist    | the same; 28x28 images are padded to 32x32               |
| anything else           | data_dir/NAME.npz                                        |
| noise10, noise100       | random pixels and labels, to try a program without data  |

An .npz holds uint8 `train_images` and `test_images` [N, 32, 32, channels], integer
`train_labels` and `test_labels` [N], and `classes` [K]; a split that is not needed may be
absent.
"""

import hashlib
import logging
import os
import pathlib
import tempfile
import zipfile
from typing import Any, NamedTuple

import numpy as np

from disguide_jax.errors import UserError

IMAGE_SIZE = 32


class Info(NamedTuple):
    """What is known of a data set without loading its images."""

    num_classes: int
    channels: int
    mean: tuple[float, ...]  # of pixels in [0, 1], per channel, for networks trained on it
    std: tuple[float, ...]


class Split(NamedTuple):
    """Images [N, 32, 32, channels] uint8 and labels [N] int32."""

    images: np.ndarray
    labels: np.ndarray


class _Known(NamedTuple):
    info: Info
    tfds_name: str
    sizes: dict[str, int]  # images in each split


# METHODS: CIFAR-10's constants, for CIFAR-100 too, as the authors' victims were trained.
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_GRAY = ((0.5,), (0.5,))
_KNOWN = {
    "cifar10": _Known(Info(10, 3, *_CIFAR), "cifar10", {"train": 50_000, "test": 10_000}),
    "cifar100": _Known(Info(100, 3, *_CIFAR), "cifar100", {"train": 50_000, "test": 10_000}),
    "svhn": _Known(Info(10, 3, *_CIFAR), "svhn_cropped", {"train": 73_257, "test": 26_032}),
    "mnist": _Known(Info(10, 1, *_GRAY), "mnist", {"train": 60_000, "test": 10_000}),
    "fashion_mnist": _Known(
        Info(10, 1, *_GRAY), "fashion_mnist", {"train": 60_000, "test": 10_000}
    ),
}
_DIGITS = Info(10, 1, *_GRAY)
_NUM_TRAINING_DIGITS = 1_297  # of 1,797
_NOISE = {"noise10": Info(10, 3, *_CIFAR), "noise100": Info(100, 3, *_CIFAR)}


def describe(name: str, data_dir: str = "") -> Info:
    """Classes, channels and usual normalisation of a data set.

    Raises:
      UserError: there is no such data set.
    """
    if name == "digits":
        return _DIGITS
    if name in _NOISE:
        return _NOISE[name]
    if name in _KNOWN:
        return _KNOWN[name].info
    path = _npz_path(name, data_dir)
    if not path.is_file():
        known = ", ".join(["digits", *_KNOWN])
        raise UserError(f"data set {name!r} is none of {known}, and there is no file {path}")
    arrays = _read_npz(path, ("test_images", "train_images", "classes"))
    if "classes" not in arrays or not arrays.keys() & {"test_images", "train_images"}:
        raise UserError(f"{path}: it must hold classes [K], and test_images or train_images")
    images = arrays.get("test_images", arrays.get("train_images"))
    channels = images.shape[3] if images.ndim == 4 else 1
    return Info(len(arrays["classes"]), channels, (0.5,) * channels, (0.5,) * channels)


def load(name: str, split: str, data_dir: str = "") -> Split:
    """The images and labels of a split, all of them or none.

    Args:
      name: see the table above.
      split: "train" or "test".
      data_dir: where NAME.npz or the prepared TFDS data set lies; "" is the current
        directory for the former and TFDS's own default for the latter.

    Raises:
      UserError: the data set is absent, incomplete or damaged; says what would be right.
    """
    if name == "digits":
        return _load_digits(split)
    info = describe(name, data_dir)
    if name in _NOISE:
        rng = np.random.default_rng(["train", "test"].index(split))
        images = rng.integers(0, 256, (100, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        return Split(images, rng.integers(0, info.num_classes, 100, np.int32))
    path = _npz_path(name, data_dir)
    if path.is_file():
        where = str(path)
        images, labels = _load_npz(path, split)
    else:
        images, labels = _load_tfds(name, split, data_dir, path)
        where = f"data set {name} of TFDS"
    return _checked(name, split, info, images, labels, where)


def _load_digits(split: str) -> Split:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 8x8, levels 0 to 16
    bilinear = Image.Resampling.BILINEAR
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = np.stack([np.asarray(Image.fromarray(p).resize(size, bilinear)) for p in pixels])
    order = np.random.default_rng(0).permutation(len(images))
    parts = {"train": order[:_NUM_TRAINING_DIGITS], "test": order[_NUM_TRAINING_DIGITS:]}
    part = parts[split]
    return Split(images[part][..., None], digits.target[part].astype(np.int32))


def _npz_path(name: str, data_dir: str) -> pathlib.Path:
    return pathlib.Path(data_dir).expanduser() / f"{name}.npz"


def _read_npz(path: pathlib.Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:  # no pickles: they could run anything
            return {key: file[key] for key in keys if key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read, it is damaged or no .npz: {error}") from error


def _load_npz(path: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    keys = f"{split}_images", f"{split}_labels"
    arrays = _read_npz(path, keys)
    if len(arrays) != 2:
        absent = " and ".join(key for key in keys if key not in arrays)
        raise UserError(f"{path}: it holds no {absent}")
    return arrays[keys[0]], arrays[keys[1]]


def _load_tfds(
    name: str, split: str, data_dir: str, npz: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """Decoded images of a prepared data set, from a cache after the first time."""
    builder = _prepared_builder(name, data_dir, npz)
    files = sorted(p for p in pathlib.Path(builder.data_dir).iterdir() if p.is_file())
    stamp = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    digest = hashlib.sha256(repr((str(builder.data_dir), stamp)).encode()).hexdigest()[:16]
    cached = _cache_dir() / f"{name}-{split}-{digest}.npz"
    if cached.is_file():
        try:
            arrays = _read_npz(cached, ("images", "labels"))  # zip archives have checksums
            return arrays["images"], arrays["labels"]
        except (UserError, KeyError):
            logging.warning("%s is damaged; decoding the images again", cached)
    try:
        source = builder.as_data_source(split=split)
        examples = [source[i] for i in range(len(source))]
        images = np.stack([example["image"] for example in examples])
        labels = np.array([example["label"] for example in examples], np.int32)
    except Exception as error:  # whatever the readers stumble over in damaged files
        raise UserError(
            f"{builder.data_dir}: the {split} images cannot be read: {error}. "
            "Delete the directory and prepare it again."
        ) from error
    _write_cache(cached, images=images, labels=labels)
    return images, labels


def _prepared_builder(name: str, data_dir: str, npz: pathlib.Path) -> Any:
    import tensorflow_datasets as tfds  # slow, and rarely needed

    directory = str(pathlib.Path(data_dir).expanduser()) if data_dir else None
    try:
        builder = tfds.builder(
            _KNOWN[name].tfds_name, data_dir=directory, file_format="array_record"
        )
        if not builder.is_prepared():
            _prepare(builder)
        return builder
    except ImportError as error:
        raise UserError(
            f"data set {name}: there is neither a file {npz} nor a data set prepared by TFDS "
            f"in {directory or '~/tensorflow_datasets'}.\n"
            "To download and prepare it once, TensorFlow is needed: "
            "pip install 'disguide_jax[data]'\n"
            f"Or make {npz} of the arrays train_images, train_labels, test_images, "
            "test_labels and classes."
        ) from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data set {name}: TFDS cannot prepare it: {error}") from error


def _prepare(builder: Any) -> None:
    import tensorflow  # noqa: F401  # TFDS's own complaint would name neither cause nor cure

    builder.download_and_prepare()


def _cache_dir() -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "disguide_jax"


def _write_cache(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes a file that is either whole or not there; does without where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        pathlib.Path(part).replace(path)
    except OSError as error:
        logging.warning("%s: cannot be written, images are decoded every time: %s", path, error)


def _checked(
    name: str, split: str, info: Info, images: np.ndarray, labels: np.ndarray, where: str
) -> Split:
    """Refuses what is not a whole split of this data set.

    Raises:
      UserError: names what is wrong and what would be right.
    """

    def check(right: bool, what: str) -> None:
        if not right:
            raise UserError(f"{where}: {what}")

    check(images.dtype == np.uint8, f"{split}_images are {images.dtype}; they must be uint8")
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[1:3] == (28, 28):
        images = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    size = (IMAGE_SIZE, IMAGE_SIZE, info.channels)
    check(
        images.shape[1:] == size,
        f"{split}_images are {list(images.shape)}; they must be {['N', *size]}",
    )
    num_images = _KNOWN[name].sizes[split] if name in _KNOWN else len(labels)
    check(
        len(images) == len(labels) == num_images and labels.ndim == 1 and num_images > 0,
        f"{len(images):,} {split} images and labels of shape {list(labels.shape)}; there must "
        f"be {num_images:,} of both, so it is incomplete",
    )
    check(np.issubdtype(labels.dtype, np.integer), f"{split}_labels must be integers")
    check(
        labels.min() >= 0 and labels.max() < info.num_classes,
        f"{split}_labels go from {labels.min()} to {labels.max()}; "
        f"they must be from 0 to {info.num_classes - 1}",
    )
    return Split(images, labels.astype(np.int32))
