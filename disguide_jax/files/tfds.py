"""Data sets that TensorFlow Datasets (TFDS) has prepared, and a cache of their decoded images."""

import hashlib
import importlib.util
import io
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tqdm
from PIL import Image

from disguide_jax.errors import UserError
from disguide_jax.files import atomic, npz

NAMES = {  # of the project: of TFDS
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "svhn": "svhn_cropped",
    "mnist": "mnist",
    "fashion_mnist": "fashion_mnist",
}

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """Images [N, H, W, channels] uint8 and labels [N] int32."""

    images: np.ndarray
    labels: np.ndarray


Arrays = tuple[np.ndarray, np.ndarray]  # images and labels, not yet checked
Check = Callable[[Arrays, str], Split]  # arrays and where they are from -> what is right of them


def load(name: str, split: str, data_dir: str, check: Check, places: list[str]) -> Split:
    """A split of a prepared data set, from the cache if it has been decoded before.

    TFDS keeps images as PNG files. Decoding 60,000 of them takes about 25 seconds, so the
    first call leaves the arrays in a cache, $XDG_CACHE_HOME/disguide_jax or
    ~/.cache/disguide_jax, and later ones take a fraction of a second.

    Args:
      name: one of `NAMES`.
      split: "train" or "test".
      data_dir: where TFDS prepared it; "" is $TFDS_DATA_DIR or ~/tensorflow_datasets.
      check: makes a split of what was decoded.
      places: other forms in which it could have been, for the message.

    Raises:
      UserError: the data set is absent, incomplete or damaged; says what would be right.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(data_dir or default).expanduser().resolve()
    folder = root / NAMES[name]
    entry = _cache_dir() / f"{name}-{split}-{_digest(str(folder))}.npz"
    cached = _read_cache(entry, _fingerprint(folder), check)
    if cached:
        return cached
    builder = _prepared_builder(name, root, places)
    fingerprint = _fingerprint(folder)  # before reading: a change meanwhile must show
    arrays = check(_decode(builder, split), f"{builder.data_path}, {split} split")
    _write_cache(entry, fingerprint, arrays)
    return arrays


def _prepared_builder(name: str, root: pathlib.Path, places: list[str]) -> Any:
    """TFDS's view of a data set, downloaded and prepared if it is not there yet."""
    import tensorflow_datasets as tfds  # takes a second, and cached images do without

    try:
        builder = tfds.builder(NAMES[name], data_dir=root)
        if builder.data_path.exists():
            return builder
        if importlib.util.find_spec("tensorflow"):
            builder.download_and_prepare(file_format="array_record")
            return builder
    except Exception as error:
        raise UserError(
            f"{name}: TFDS can neither read nor prepare it in {root}: {error}\n"
            f"These would do as well: {'; '.join(places)}."
        ) from error
    listed = "".join(f"\n    {place}" for place in [*places, f"{builder.data_path}, made by TFDS"])
    raise UserError(
        f"{name}: there is none of{listed}\n"
        "Make one of them, or install what TFDS needs to make the last, and run again:\n"
        "    pip install 'disguide_jax[data]'"
    )


def _decode(builder: Any, split: str) -> Arrays:
    import tensorflow_datasets as tfds

    skip = {"image": tfds.decode.SkipDecoding()}  # TFDS's own decoder is slower, and warns
    folder = builder.data_path
    if split not in builder.info.splits:
        raise UserError(
            f"{folder}: incomplete, its dataset_info.json knows no {split} split; "
            "delete the folder and prepare it again"
        )
    images, labels = [], []
    try:
        source = builder.as_data_source(split, decoders=skip)
        for example in tqdm.tqdm(source, f"decoding {split} images", leave=False, disable=None):
            with Image.open(io.BytesIO(example["image"]), formats=("PNG",)) as image:
                images.append(np.asarray(image))
            labels.append(example["label"])
        return np.stack(images), np.array(labels)
    except NotImplementedError as error:
        raise UserError(
            f"{folder}: prepared as {builder.info.file_format.value}, which takes TensorFlow "
            "to read; choose another data_dir, or delete the folder, and have it prepared as "
            "array_record"
        ) from error
    except Exception as error:  # there is no end to what damage can raise
        files = ", ".join(path.name for path in builder.info.splits[split].filepaths)
        raise UserError(
            f"{folder}: damaged or incomplete, image {len(images):,} of {files} cannot be read: "
            f"{error}; delete the folder and prepare it again"
        ) from error


def _cache_dir() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / (
        "disguide_jax"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fingerprint(folder: pathlib.Path) -> str:
    """Changes with every file of every prepared version: added, removed or written."""
    paths = sorted(folder.glob("[0-9]*/*"))
    stats = [(str(path), path.stat()) for path in paths]
    return _digest(repr([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]))


def _read_cache(entry: pathlib.Path, fingerprint: str, check: Check) -> Split | None:
    if not os.path.exists(entry):
        return None
    try:
        arrays = npz.read(entry, "fingerprint", "images", "labels")  # a zip: it has checksums
        if arrays["fingerprint"] == fingerprint:
            return check((arrays["images"], arrays["labels"]), str(entry))
    except (UserError, KeyError) as error:
        logger.warning("%s: unusable, so the images are decoded again: %s", entry, error)
    return None


def _write_cache(entry: pathlib.Path, fingerprint: str, arrays: Split) -> None:
    """Leaves a file that is whole, whoever else writes it; does without where it cannot."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(entry, shared=True) as file:
            np.savez(file, fingerprint=fingerprint, **arrays._asdict())
    except OSError as error:
        logger.warning("%s: not written, so images are decoded every time: %s", entry, error)
