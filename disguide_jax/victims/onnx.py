"""A victim in an ONNX file, which ONNX Runtime computes on the CPU.

It needs what pip install 'disguide_jax[onnx]' brings.
"""

import hashlib
import pathlib
import re
from typing import Any

import numpy as np

from disguide_jax import paths
from disguide_jax.core import pixels
from disguide_jax.errors import UserError
from disguide_jax.options import VictimConfig
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.host import Count

PREFIX = "onnx:"
INPUTS = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
OUTPUTS = [f"tensor({kind})" for kind in ("float", "float16", "double", "int64", "int32")]
SILENT = 4  # ONNX Runtime's log; what fails is raised, too
NOISE = re.compile(  # in what ONNX Runtime says: its number, a name that is known, C++
    r"^\[ONNXRuntimeError\] : \d+ : |Load model from .*? failed:|\S+\.(?:h|cc):\d+ .*?\) "
)
MOST_SAID = 400  # characters of the rest
LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])")  # of weights: key, length of the value


class Onnx:
    """An endpoint in a file, onnx:FILE, whose input is images and output answers.

    Attributes:
      image_size: height and width of its images; 0 where the file does not say.
      channels: of its images; 0 where the file does not say.
      num_classes: that it tells apart; 0 where the file does not say.

    Args:
      config: names the file, and says what the file does not.
      contract: that its answers must keep.

    Raises:
      UserError: it is no such file, or contradicts the configuration.
    """

    def __init__(self, config: VictimConfig, contract: Contract):
        self.name, self._config, self._contract = config.endpoint, config, contract
        path = path_of(config)
        self.fingerprint = fingerprint(path)
        self._session = _open(path, self.name)
        images = _only("input", self._session.get_inputs(), list(INPUTS), self.name)
        answers = _only("output", self._session.get_outputs(), OUTPUTS, self.name)
        self._input, self._dtype = images.name, np.dtype(INPUTS[images.type])

        said = f"{self.name}: its input is {images.shape}"
        shape = _sizes(images) or [0] * 4
        if len(shape) != 4:
            raise UserError(f"{said}; it must be [N, channels, H, W] or [N, H, W, channels]")
        self._batch_size = shape[0]  # 0: any
        self._channels_first = _channels_first(config.layout, shape, said)
        self.channels = shape.pop(1 if self._channels_first else 3)
        self.image_size = max(shape[1:])
        if 0 < min(shape[1:]) < self.image_size:
            raise UserError(f"{said}; its images must be as wide as they are high")
        classes = _sizes(answers)[1:]
        self.num_classes = classes[0] if classes and classes[0] > 1 else 0  # 1: a column of labels
        self._check_config()

    def _check_config(self) -> None:
        """Raises a UserError where file and configuration contradict each other."""
        config = self._config
        for key, meant in {
            "image_size": config.image_size,
            "channels": config.channels,
            "num_classes": self._contract.num_classes,
        }.items():
            found = getattr(self, key)
            if found and meant and found != meant:
                raise UserError(f"{self.name}: {key} is {found}, but the configuration has {meant}")
        of_integers = self._dtype.kind == "u"
        if of_integers and config.pixels in ("0..1", "-1..1"):
            raise UserError(
                f"config.victim.pixels is {config.pixels!r}, but {self.name} takes integers, which "
                "hold pixels as they are: leave it out"
            )
        if not config.mean and not config.std:
            return
        if of_integers or config.pixels not in ("", "0..1"):
            raise UserError(
                "config.victim.mean and std are of pixels in 0..1, but "
                f"{self.name} takes {'integers' if of_integers else config.pixels}: leave them out"
            )
        channels = self.channels or config.channels or len(config.mean)
        if not len(config.mean) == len(config.std) == channels:
            raise UserError(
                f"config.victim.mean is {config.mean} and std {config.std}; each must have one "
                f"value for each of {channels} channels"
            )

    def ask(self, images: np.ndarray, count: Count) -> np.ndarray:
        """Answers to uint8 images [N, H, W, channels].

        Where the file takes batches of one size only, the last one is filled up with its last
        image, which is counted as sent as often.

        Raises:
          UserError: it fails, or its answers break the contract.
        """
        size = self._batch_size or len(images)
        found = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            if padding := size - len(batch):
                count(padding)
                batch = np.concatenate([batch, np.repeat(batch[-1:], padding, axis=0)])
            found.append(self._run(batch))
        answers = np.concatenate(found)[: len(images)]
        if answers.ndim == 2 and self._config.logits:
            answers = _softmax(answers)
        try:
            return self._contract.check(answers, len(images), self.name)
        except UserError as error:
            if self._config.logits or answers.ndim != 2 or not (answers < 0).any():
                raise
            raise UserError(f"{error}; of logits, set config.victim.logits=true") from error

    def close(self) -> None:
        """Has nothing to give back."""

    def _run(self, images: np.ndarray) -> np.ndarray:
        """The output for one batch."""
        try:
            (answers,) = self._session.run(None, {self._input: self._prepared(images)})
        except Exception as error:  # ONNX Runtime's exceptions have no class in common
            raise UserError(f"{self.name} fails: {_said(error)}") from error
        if answers.shape[:1] != images.shape[:1]:
            raise UserError(
                f"{self.name} answered {len(images)} images with {list(answers.shape)}: its first "
                "dimension must be that of the images"
            )
        return answers

    def _prepared(self, images: np.ndarray) -> np.ndarray:
        """Images in the type, range and layout of the input."""
        values = images
        if self._dtype.kind == "f":
            values = self._scaled(images.astype(np.float32)).astype(self._dtype)
        if self._channels_first:
            values = values.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(values)

    def _scaled(self, images: np.ndarray) -> np.ndarray:
        """Pixels in the range of the input, normalised where the configuration says how."""
        config = self._config
        if config.pixels == "-1..1":
            return images / pixels.HALF_RANGE - 1
        if config.pixels not in ("", "0..1"):
            return images
        images = images / (2 * pixels.HALF_RANGE)
        if config.mean:
            mean, std = (np.asarray(values, np.float32) for values in (config.mean, config.std))
            images = (images - mean) / std
        return images


def path_of(config: VictimConfig) -> pathlib.Path:
    """The file that onnx:FILE names, which need not be there."""
    return paths.expanded(config.endpoint.removeprefix(PREFIX))


def fingerprint(path: pathlib.Path) -> str:
    """A hash of an ONNX file, and of the files beside it that hold its weights, if any.

    Raises:
      UserError: it cannot be read.
    """
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content)
        locations = {
            content[found.end() : found.end() + found[1][0]] for found in LOCATION.finditer(content)
        }
        for location in sorted(locations):
            with (path.parent / location.decode(errors="replace")).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise UserError(
            f"config.victim.endpoint: {error.filename} cannot be read: {error.strerror}"
        ) from error
    return digest.hexdigest()


def _open(path: pathlib.Path, name: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{name} needs ONNX Runtime: pip install 'disguide_jax[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no class in common
        raise UserError(f"{name} is no ONNX file that can be used: {_said(error)}") from error


def _only(what: str, found: list[Any], types: list[str], name: str) -> Any:
    """The one input or output."""
    if len(found) != 1:
        names = ", ".join(each.name for each in found)
        raise UserError(f"{name} has {len(found)} {what}s, {names}; it must have one")
    if found[0].type not in types:
        raise UserError(
            f"{name}: its {what} {found[0].name} is {found[0].type}; it must be one of "
            f"{', '.join(types)}"
        )
    return found[0]


def _sizes(node: Any) -> list[int]:
    """The shape of an input or output: 0 where a dimension is free, [] where all are."""
    return [size if isinstance(size, int) and size > 0 else 0 for size in node.shape]


def _channels_first(layout: str, shape: list[int], said: str) -> bool:
    """Whether images are [N, channels, H, W] rather than [N, H, W, channels]."""
    first, last = (shape[i] in (1, 3) for i in (1, 3))
    if not layout and first == last:
        raise UserError(
            f"{said}, which does not tell where its 1 or 3 channels are: set config.victim.layout "
            "to NCHW or NHWC"
        )
    return layout == "NCHW" if layout else first


def _softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite is for the contract to refuse
        exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)


def _said(error: Exception) -> str:
    """What ONNX Runtime says, in a line."""
    return " ".join(NOISE.sub("", str(error)).split())[:MOST_SAID]
