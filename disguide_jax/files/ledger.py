"""The ledger: everything that a victim on the host was sent, and what it answered.

A file that only grows, `ledger/queries.bin`. Images are on the disk before they are sent, and
answers before anyone learns from them, so that a process that is killed anywhere sends nothing
twice that was answered, and what was under way once more at most. Every image that the victim
may have received is counted here, each time that it was sent.

Records are a header, with its own checksum, and a payload:

| kind    | payload                  | means                                                   |
|---------|--------------------------|---------------------------------------------------------|
| OPENED  | JSON                     | shapes and types of what follows; the first record      |
| SENT    | N uint8 images           | N images are about to be sent                           |
| AGAIN   | none                     | N of them are about to be sent once more; below 0: were |
|         |                          | not sent after all                                      |
| LEFT    | none                     | the N images of the record before it are on their way   |
| ANSWERS | N answers                | what the victim said of the images of this position     |

LEFT is written when the record before it is on the disk, at the last moment before the images go,
and is not waited for: the system keeps it when the process is killed, though not when the power
fails. So a last record without one, written since the machine was started, was never sent.

What the victim is asked belongs to an account: TRAINING, whose positions count the images that
clones learn from; FIDELITY, images that only measure how alike clones and victim are; TEST, the
test images of a data set, which are no part of the budget; UNDEFENDED, the images of these two
accounts once more where the victim has a defence, answered as without one, for its owner.
"""

import functools
import json
import logging
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from disguide_jax.errors import UserError
from disguide_jax.files import atomic

TRAINING, FIDELITY, TEST, UNDEFENDED = ACCOUNTS = range(4)
OPENED, SENT, AGAIN, ANSWERS, LEFT = range(5)
MAGIC = b"DGL2"
HEADER = struct.Struct("<4sBBiQQIQI")  # magic, then the fields of _Header
SEAL = struct.Struct("<I")  # CRC-32 of the header

log = logging.getLogger(__name__)


class Spent(Exception):  # noqa: N818
    """The budget does not pay for what was about to be sent."""


class Format(NamedTuple):
    """Shapes and types of one image and one answer."""

    image: tuple[int, ...]  # [H, W, channels] uint8
    answer: tuple[int, ...]  # [K] or []
    dtype: str  # of answers: float32 or int32


class _Entry(NamedTuple):
    num: int
    images_at: int  # where in the file
    answers_at: int | None  # None: under way, or never sent


class _Header(NamedTuple):
    kind: int
    account: int
    num: int
    position: int
    received: int  # by the victim on this account, this record included
    boot: int  # which start of the machine this was written after
    num_bytes: int
    checksum: int  # of the payload


class Ledger:
    """The ledger of a workdir, opened for one process. A context manager.

    Args:
      folder: made if absent.
      format: of what is kept.

    Raises:
      UserError: it cannot be read or written, or holds another format.
    """

    def __init__(self, folder: pathlib.Path, format: Format):
        self._path, self._format = folder / "queries.bin", format
        self._entries: dict[tuple[int, int], _Entry] = {}  # by account and position
        self.received = dict.fromkeys(ACCOUNTS, 0)  # images, each time that they were sent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b", buffering=0)
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror}") from error
        try:
            if self._read() == 0:
                self._append(OPENED, TRAINING, 0, 0, json.dumps(format._asdict()).encode())
                atomic.sync(folder)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def opened(cls, folder: pathlib.Path) -> "Ledger":
        """The ledger that is there, of whatever format.

        Raises:
          UserError: there is none, or its beginning is damaged.
        """
        path = folder / "queries.bin"
        try:
            with path.open("rb") as file:
                header, problem = _read_header(file)
                body = file.read(header.num_bytes) if header else b""
        except FileNotFoundError as error:
            raise UserError(
                f"there is no {path}: only runs whose victim is an endpoint keep a ledger"
            ) from error
        if not header or problem or header.kind != OPENED or zlib.crc32(body) != header.checksum:
            raise UserError(f"{path}: its beginning is damaged, so that nothing in it is known")
        return cls(folder, _format_of(body))

    @property
    def format(self) -> Format:
        """Shapes and types of images and answers."""
        return self._format

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def images(self, account: int, position: int) -> np.ndarray | None:
        """The images [N, H, W, channels] that were sent, or about to be, at a position."""
        entry = self._entries.get((account, position))
        if entry is None:
            return None
        return self._array(entry.images_at, entry.num, self._format.image, np.dtype(np.uint8))

    def answers(self, account: int, position: int) -> np.ndarray | None:
        """The answers to them, [N, K] float32 or [N] int32; None where none have come."""
        entry = self._entries.get((account, position))
        if entry is None or entry.answers_at is None:
            return None
        dtype = np.dtype(self._format.dtype)
        return self._array(entry.answers_at, entry.num, self._format.answer, dtype)

    def answered(
        self, account: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Positions, images and answers, batch by batch, of whatever has an answer.

        Args:
          account: of which they are.
          start: the first position that is wanted; its batch may begin before it.
          stop: the first that is not; None: wherever the account ends.
        """
        for position in self._answered(account, start, stop):
            answers, images = self.answers(account, position), self.images(account, position)
            if answers is not None and images is not None:
                yield position, images, answers

    def num_answered(self, account: int, start: int = 0, stop: int | None = None) -> int:
        """How many images from `start` to before `stop` have an answer."""
        found = 0
        for position in self._answered(account, start, stop):
            end = position + self._entries[account, position].num
            found += min(end, stop or end) - max(position, start)
        return found

    def answered_up_to(self, account: int) -> int:
        """The position before which every image has its answer."""
        position = 0
        while (entry := self._entries.get((account, position))) and entry.answers_at is not None:
            position += entry.num
        return position

    def send(self, account: int, position: int, images: np.ndarray) -> None:
        """Notes that images [N, H, W, channels] are about to be sent for the first time."""
        num, body = len(images), np.ascontiguousarray(images, np.uint8).tobytes()
        at = self._append(SENT, account, num, position, body)
        self._entries[account, position] = _Entry(num, at, None)
        self._append(LEFT, account, num, position, b"")

    def send_again(self, account: int, num: int) -> None:
        """Notes that `num` images are about to be sent once more; below 0: that they were not."""
        self._append(AGAIN, account, num, 0, b"")
        if num > 0:
            self._append(LEFT, account, num, 0, b"")

    def answer(self, account: int, position: int, answers: np.ndarray) -> None:
        """Notes what was answered to the images of a position."""
        entry = self._entries[account, position]
        body = np.ascontiguousarray(answers, self._format.dtype).tobytes()
        at = self._append(ANSWERS, account, entry.num, position, body)
        self._entries[account, position] = entry._replace(answers_at=at)

    def expect(self, account: int, received: int) -> None:
        """Raises the count to what a checkpoint knows to have been sent, if it is higher."""
        if received > self.received[account]:
            self.send_again(account, received - self.received[account])

    def _append(self, kind: int, account: int, num: int, position: int, body: bytes) -> int:
        """Writes a record, on the disk when this returns unless it is LEFT.

        Returns where its payload is.
        """
        received = self.received[account] + (num if kind in (SENT, AGAIN) else 0)
        header = _Header(
            kind, account, num, position, received, _boot(), len(body), zlib.crc32(body)
        )
        head = HEADER.pack(MAGIC, *header)
        start = self._file.seek(0, os.SEEK_END)
        record = head + SEAL.pack(zlib.crc32(head)) + body
        try:
            while record:  # a full disk may take a part of it
                record = record[self._file.write(record) :]
            if kind != LEFT:
                atomic.flush(self._file)
        except OSError:
            self._file.truncate(start)
            raise
        self.received[account] = received
        return start + HEADER.size + SEAL.size

    def _answered(self, account: int, start: int, stop: int | None) -> list[int]:
        """Positions of whole batches with answers, of which a part is wanted, in order."""
        return sorted(
            position
            for (of_account, position), entry in self._entries.items()
            if of_account == account
            and entry.answers_at is not None
            and position + entry.num > start
            and (stop is None or position < stop)
        )

    def _array(self, at: int, num: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        array = np.empty((num, *shape), dtype)
        self._file.seek(at)
        self._file.readinto(array.reshape(-1).view(np.uint8).data)
        return array

    def _read(self) -> int:
        """Reads all records; what follows damage is put aside. Returns where the next one goes."""
        at, size, last = 0, os.fstat(self._file.fileno()).st_size, None
        while at < size:
            self._file.seek(at)
            header, problem = _read_header(self._file)
            body_at = at + HEADER.size + SEAL.size
            if header and not problem:
                self._file.seek(body_at)
                body = self._file.read(header.num_bytes)
                if len(body) < header.num_bytes:
                    problem = "is cut"
                elif zlib.crc32(body) != header.checksum:
                    problem = "is damaged: its checksum does not match"
                elif header.kind == OPENED:
                    self._check_format(body)
                else:
                    self._note(header, body_at)
            if header is None or problem:
                self._put_aside(at, size, problem)
                return at
            at, last = body_at + header.num_bytes, header
        if last and last.kind in (SENT, AGAIN) and last.num > 0 and last.boot == _boot() != 0:
            self.send_again(last.account, -last.num)
        return at

    def _check_format(self, body: bytes) -> None:
        found = _format_of(body)
        if found != self._format:
            raise UserError(f"{self._path} holds {found}, but the run needs {self._format}")

    def _note(self, header: _Header, body_at: int) -> None:
        self.received[header.account] = header.received
        key = header.account, header.position
        if header.kind == SENT:
            self._entries[key] = _Entry(header.num, body_at, None)
        elif header.kind == ANSWERS:
            self._entries[key] = self._entries[key]._replace(answers_at=body_at)

    def _put_aside(self, at: int, size: int, problem: str) -> None:
        """Goes on with what comes before `at`, and keeps the rest in a file of its own."""
        self._file.seek(at)
        rest = self._file.read()
        aside = self._path.with_name(f"damaged-{at}.bin")
        with atomic.replacing(aside) as file:
            file.write(rest)
        log.warning(
            "%s: the record at byte %s of %s %s. What is before it is used; the rest lies in %s.",
            *(self._path, f"{at:,}", f"{size:,}", problem, aside.name),
        )
        self._file.truncate(at)
        atomic.flush(self._file)
        for account, received in _last_counts(rest).items():
            self.expect(account, received)


def bytes_on_disk(format: Format, num_images: int, at_once: int) -> int:
    """What a ledger takes of so many images and their answers, sent so many at once."""
    answer = math.prod(format.answer) * np.dtype(format.dtype).itemsize
    records = 3 * -(-num_images // at_once)  # SENT, LEFT, ANSWERS
    return num_images * (math.prod(format.image) + answer) + records * (HEADER.size + SEAL.size)


@functools.cache
def _boot() -> int:
    """A number that changes when the machine is started; 0 where the system has none."""
    try:
        return zlib.crc32(pathlib.Path("/proc/sys/kernel/random/boot_id").read_bytes())
    except OSError:
        return 0


def _read_header(file: IO[bytes]) -> tuple[_Header | None, str]:
    """The header that begins here and, if it is None, why."""
    head = file.read(HEADER.size + SEAL.size)
    if len(head) < HEADER.size + SEAL.size:
        return None, "is cut"
    magic, *fields = HEADER.unpack(head[: HEADER.size])
    (seal,) = SEAL.unpack(head[HEADER.size :])
    if magic != MAGIC or seal != zlib.crc32(head[: HEADER.size]):
        return None, "is damaged: its checksum does not match"
    return _Header(*fields), ""


def _format_of(body: bytes) -> Format:
    kept = json.loads(body)
    return Format(tuple(kept["image"]), tuple(kept["answer"]), kept["dtype"])


def _last_counts(rest: bytes) -> dict[int, int]:
    """What headers in a damaged part, wherever whole ones are, say was received."""
    counts: dict[int, int] = {}
    at = rest.find(MAGIC)
    while at >= 0:
        end = at + HEADER.size
        if len(rest) >= end + SEAL.size:
            head = rest[at:end]
            if SEAL.unpack(rest[end : end + SEAL.size])[0] == zlib.crc32(head):
                header = _Header(*HEADER.unpack(head)[1:])
                counts[header.account] = max(counts.get(header.account, 0), header.received)
        at = rest.find(MAGIC, at + 1)
    return counts
