"""What a checkpoint says about itself: progress, segments of the replay, and its files."""

import concurrent.futures
import dataclasses
import json
import pathlib
import zlib
from typing import Any

from disguide_jax.files import atomic
from disguide_jax.files.segments import Segment


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a manifest.json."""

    round: int
    queries: int
    head: int
    progress: dict[str, Any]
    leaves: dict[str, str]  # of the whole state: path to dtype[shape]
    key_impls: dict[str, str]  # path of a PRNG key to its implementation
    segments: tuple[Segment, ...]  # oldest first: later ones write over earlier ones
    files: dict[str, tuple[int, int]]  # path in the directory to bytes and CRC-32

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"{self.round:09}"


class DamagedError(Exception):
    """A checkpoint that cannot be used; says which file and what is wrong with it."""


def write_manifest(path: pathlib.Path, manifest: Manifest) -> None:
    """Writes it with its checksum. Half of one is never read: its directory is renamed later."""
    body = dataclasses.asdict(manifest)
    path.write_text(json.dumps({"crc32": _body_checksum(body), "checkpoint": body}, indent=1))
    atomic.sync(path)


def read_manifest(directory: pathlib.Path, name: str) -> Manifest:
    """The manifest of the checkpoint `name`.

    Raises:
      DamagedError: it is missing or not what was written.
    """
    path = directory / name / "manifest.json"
    try:
        content = json.loads(path.read_bytes())
        body = content["checkpoint"]
        if content["crc32"] != _body_checksum(body):
            raise ValueError("its checksum does not match")
        segments = tuple(Segment(*segment) for segment in body["segments"])
        files = {file: tuple(sealed) for file, sealed in body["files"].items()}
        return Manifest(**body | {"segments": segments, "files": files})
    except FileNotFoundError as error:
        raise DamagedError(f"{name}/manifest.json is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{name}/manifest.json cannot be read: {error}") from error


def _body_checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def check_files(directory: pathlib.Path, manifest: Manifest) -> None:
    """Raises DamagedError unless all files of a checkpoint are what was written."""

    def problem(path: str) -> str | None:
        expected_size, expected_checksum = manifest.files[path]
        try:
            size, checksum = measure(directory / path)
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        if size != expected_size:
            return f"{path} has {size:,} bytes instead of {expected_size:,}"
        if checksum != expected_checksum:
            return f"{path} is not what was written: its checksum does not match"
        return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        problems = [found for found in pool.map(problem, manifest.files) if found]
    if problems:
        raise DamagedError("; ".join(problems))


def measure(path: pathlib.Path) -> tuple[int, int]:
    """The bytes of a file and their CRC-32."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(2**24):
            checksum = zlib.crc32(chunk, checksum)
        return file.tell(), checksum
