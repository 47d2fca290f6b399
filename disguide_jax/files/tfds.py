"""Data sets that TensorFlow Datasets (TFDS) has prepared."""

import importlib.util
import io
import os
import pathlib
import re

import numpy as np
import tqdm
from PIL import Image

from disguide_jax.errors import UserError
from disguide_jax.files.places import Arrays, is_folder, root

NAMES = {  # of the project: of TFDS
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "svhn": "svhn_cropped",
    "mnist": "mnist",
    "fashion_mnist": "fashion_mnist",
}
VERSION = re.compile(r"\d+\.\d+\.\d+")  # the name of a folder that is whole
AGAIN = "delete the folder and prepare it again"


def find(name: str, data_dir: str) -> pathlib.Path | None:
    """The folder of the newest prepared version of a data set, or None.

    Args:
      name: of the data set, here.
      data_dir: where TFDS prepared it, or TFDS's folder of that name, or of the version; "" is
        $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      OSError: a folder cannot be read.
    """
    if name not in NAMES:
        return None
    here = _root(data_dir)
    folders = [path for path in (here / NAMES[name], here) if path.name == NAMES[name]]
    versions = [path for folder in folders if is_folder(folder) for path in folder.iterdir()]
    if here.parent.name == NAMES[name] and is_folder(here):
        versions.append(here)
    whole = [path for path in versions if VERSION.fullmatch(path.name)]
    return max(whole, key=lambda path: list(map(int, path.name.split("."))), default=None)


def places(name: str, data_dir: str) -> list[str]:
    """Where the data set could be in this form, in words; [] where TFDS has no such data set."""
    return [f"{_root(data_dir) / NAMES[name]}/VERSION, made by TFDS"] if name in NAMES else []


def can_prepare(name: str) -> bool:
    """Whether what TFDS needs to make a data set is installed."""
    return name in NAMES and bool(importlib.util.find_spec("tensorflow"))


def prepare(name: str, data_dir: str) -> pathlib.Path:
    """Downloads and prepares a data set; returns its folder.

    Raises:
      UserError: that fails.
    """
    import tensorflow_datasets as tfds  # takes a second

    try:
        builder = tfds.builder(NAMES[name], data_dir=_root(data_dir))
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise UserError(f"{name}: TFDS cannot prepare it in {_root(data_dir)}: {error}") from error
    return pathlib.Path(builder.data_path)


def load(place: pathlib.Path, name: str, split: str) -> Arrays:
    """Images and labels [N] of a split of a prepared data set. TensorFlow is not needed.

    TFDS keeps images as PNG files; decoding 60,000 of them takes about 25 seconds.

    Raises:
      UserError: the data set is incomplete or damaged, or takes TensorFlow to read.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(place)
        formats = builder.info.available_file_formats()
        readable = formats & tfds.core.file_adapters.FileFormat.with_random_access()
    except Exception as error:  # there is no end to what damage can raise
        raise UserError(f"{place}: TFDS cannot read it: {error}; {AGAIN}") from error
    if split not in builder.info.splits:
        raise UserError(
            f"{place}: incomplete, its dataset_info.json knows no {split} split; {AGAIN}"
        )
    if not readable:
        raise UserError(
            f"{place}: prepared as {' and '.join(kind.value for kind in formats)}, which takes "
            "TensorFlow to read; choose another data_dir, or delete the folder, and have it "
            "prepared as array_record"
        )
    skip = {"image": tfds.decode.SkipDecoding()}  # TFDS's own decoder is slower, and warns
    images, labels = [], []
    try:
        source = builder.as_data_source(split, decoders=skip)
        for example in tqdm.tqdm(source, f"decoding {split} images", leave=False, disable=None):
            with Image.open(io.BytesIO(example["image"]), formats=("PNG",)) as image:
                images.append(np.asarray(image))
            labels.append(example["label"])
        return np.stack(images), np.array(labels)
    except Exception as error:
        files = ", ".join(path.name for path in builder.info.splits[split].filepaths)
        raise UserError(
            f"{place}: damaged or incomplete, image {len(images):,} of {files} cannot be read: "
            f"{error}; {AGAIN}"
        ) from error


def _root(data_dir: str) -> pathlib.Path:
    if data_dir:
        return root(data_dir)
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(os.path.expanduser(default)).absolute()  # as it is where there is no home
