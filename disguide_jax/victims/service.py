"""A victim behind HTTP, as TensorFlow Serving, KServe (v1) and MLflow serve models.

POST {"instances": [image, ...]} is answered by {"predictions": [[p, ...], ...]}, or by labels,
{"predictions": [label, ...]}. An image is [H][W][channels] of integers 0 to 255, or
{"b64": base64 of a PNG}.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import io
import ipaddress
import itertools
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx
import numpy as np
from PIL import Image

from disguide_jax.errors import UserError
from disguide_jax.options import VictimConfig
from disguide_jax.victims.contract import SHOWN, Contract
from disguide_jax.victims.host import Count

MOST_BYTES = 64 * 2**20  # of a response
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before an attempt is repeated, doubled each time
LONGEST_RETRY_AFTER = 120.0  # seconds that a service may tell us to wait
KEEP_ALIVE = 3.0  # seconds; servers hang up after 5 and more, and who asks just then fails
SECRET = re.compile(  # names of parameters
    r"(.*[_-])?(api)?(code|credential|key|passwd|password|secret|sig|signature|token)",
    re.IGNORECASE,
)
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class _Received(NamedTuple):
    """A whole response."""

    status: int
    headers: httpx.Headers
    body: bytes


class _Passing(Exception):  # noqa: N818
    """A failure that may pass."""


@dataclasses.dataclass
class _Request:
    """Images that are sent together."""

    images: np.ndarray
    source: str  # of its answers, for messages
    unsent: int  # images that are counted, but not sent: all or none


class Service:
    """An endpoint at an address, http://... or https://...

    Requests that fail in a way that may pass are repeated. One thread at a time asks.

    Args:
      config: its address, and how it is asked.
      contract: that its answers must keep.

    Raises:
      UserError: the address is none, it is beyond this machine and nobody allows to copy it, or
        its token is not in the environment.
    """

    def __init__(self, config: VictimConfig, contract: Contract):
        host = _host(config.endpoint)
        if not _is_loopback(host) and not config.authorised_by.strip():
            raise UserError(
                f"config.victim.endpoint is {config.endpoint}, a service beyond this machine: set "
                "config.victim.authorised_by to who allows that it is copied, and when"
            )
        self.name = config.endpoint
        self._config, self._contract = config, contract
        self._token = _token(config.token_env)
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            self._client = httpx.AsyncClient(
                headers=headers,
                verify=httpx.create_ssl_context(),
                trust_env=not _is_loopback(host),  # proxies
                # Of an attempt, which is timed in _post: who never connects must be known before.
                timeout=httpx.Timeout(None, connect=config.timeout_seconds / 2),
                limits=httpx.Limits(
                    max_connections=config.concurrency, keepalive_expiry=KEEP_ALIVE
                ),
            )
        except (ImportError, OSError, ValueError) as error:  # of proxies and SSL_CERT_FILE
            raise UserError(f"{self.name} cannot be asked: {error}") from error
        self._pace = _Pace(config.requests_per_second)
        self._numbers = itertools.count(1)  # of requests, for messages
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._one_at_a_time = threading.Lock()
        self._broken_off = False  # something failed in this ask, and nothing more is sent

    def ask(self, images: np.ndarray, count: Count) -> np.ndarray:
        """Answers to uint8 images [N, H, W, channels], in their order.

        Args:
          images: N of them, which the caller has counted as sent once.
          count: called, while this waits, before images are sent again that may have been received,
            and in the end with minus the number of those that were counted but never sent.

        Raises:
          UserError: the service fails for good, or answers what is not agreed. Whatever is under
            way then, or when `count` raises, is broken off, and nothing more is sent.
        """
        with self._one_at_a_time:
            return _beside_loops(lambda: self._runner.run(self._ask(images, count)))

    def close(self) -> None:
        """Closes its connections; once more does nothing."""
        with self._one_at_a_time:
            if not self._client.is_closed:
                _beside_loops(self._close)

    def _close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()

    async def _ask(self, images: np.ndarray, count: Count) -> np.ndarray:
        size = self._config.images_per_request
        requests = [
            _Request(part, f"{self.name}: request {next(self._numbers)}", len(part))
            for part in (images[i : i + size] for i in range(0, len(images), size))
        ]
        turns, self._broken_off = asyncio.Semaphore(self._config.concurrency), False

        async def ask(request: _Request) -> np.ndarray:
            async with turns:
                try:
                    return await self._insist(request, count)
                except BaseException:
                    self._broken_off = True
                    raise

        failure = None
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(request)) for request in requests]
        except BaseExceptionGroup as failures:
            failure = failures.exceptions[0]
        finally:
            if unsent := sum(request.unsent for request in requests):
                count(-unsent)
        if failure:
            raise failure
        return np.concatenate([task.result() for task in tasks])

    async def _insist(self, request: _Request, count: Count) -> np.ndarray:
        """Answers to one request, which is repeated while its failures may pass."""
        num_images, attempts = len(request.images), self._config.retries + 1
        body = _body(request.images, self._config.image_format)
        failure: Exception
        wait = 0.0
        for attempt in range(attempts):
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            wait = min(2 * wait, LONGEST_WAIT) or FIRST_WAIT
            await self._pace.turn()
            if self._broken_off:  # and the group is about to tell
                raise asyncio.CancelledError
            if attempt:  # may stop the run
                count(0 if request.unsent else num_images)
            request.unsent = 0
            try:
                received = await self._post(body, request.source)
                return self._read(received, num_images, request.source)
            except NEVER_SENT as error:
                request.unsent = num_images
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise UserError(
                        f"{request.source}: {error}. Where the certificate is your own, let the "
                        "environment variable SSL_CERT_FILE name it."
                    ) from error
                failure = error
            except (_Passing, httpx.TransportError) as error:
                failure = error
        raise UserError(
            f"{request.source} failed, at attempt {attempts} of {attempts} too: "
            f"{(str(failure) or type(failure).__name__).rstrip('.')}. Once the service answers "
            "again, the same command goes on."
        ) from failure

    async def _post(self, body: bytes, source: str) -> _Received:
        """What comes back from one attempt, whatever it is."""
        seconds, received = self._config.timeout_seconds, bytearray()
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream("POST", self.name, content=body) as response,
            ):
                async for chunk in response.aiter_bytes():
                    received += chunk
                    if len(received) > MOST_BYTES:
                        raise UserError(
                            f"{source} answered more than {MOST_BYTES:,} bytes; lower "
                            "config.victim.images_per_request if that many are right"
                        )
        except TimeoutError as error:
            raise _Passing(f"no whole answer in {seconds:g} seconds") from error
        except httpx.DecodingError as error:
            raise UserError(f"{source} answered what cannot be unpacked: {error}") from error
        return _Received(response.status_code, response.headers, bytes(received))

    def _read(self, received: _Received, num_images: int, source: str) -> np.ndarray:
        """The answers that a response holds.

        Raises:
          _Passing: it tells to come back later.
          UserError: it is anything else.
        """
        if received.status == 429 or received.status >= 500:
            self._hold(received, source)
            raise _Passing(self._shown(received))
        if not 200 <= received.status < 300:
            raise UserError(f"{source} answered {self._shown(received)}{self._advice(received)}")
        try:
            answer = json.loads(received.body)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{source} answered {self._shown(received)}, which is no JSON"
            ) from error
        if not isinstance(answer, dict) or "predictions" not in answer:
            raise UserError(
                f'{source} answered {self._shown(received)}, which has no "predictions"'
            )
        try:
            return self._contract.check(answer["predictions"], num_images, source)
        except UserError:
            if self._token and self._token.encode() in received.body:
                raise UserError(
                    f"{source} answered what is not agreed, and is not shown: it holds the token"
                ) from None
            raise

    def _hold(self, received: _Received, source: str) -> None:
        """Waits with further requests as long as a response says."""
        seconds = _seconds(received.headers.get("Retry-After", ""))
        if seconds > LONGEST_RETRY_AFTER:
            raise UserError(
                f"{source} answered {self._shown(received)}, and to come back in {seconds:,.0f} "
                f"seconds, of which at most {LONGEST_RETRY_AFTER:g} are waited. Run the same "
                "command again then."
            )
        self._pace.hold(seconds)

    def _advice(self, received: _Received) -> str:
        """What may mend a response that is none."""
        if received.status in (401, 403):
            if self._token:
                return f". It does not take the token in {self._config.token_env}."
            return ". Where it wants a token, let config.victim.token_env name its variable."
        if 300 <= received.status < 400:
            place = self._without_token(received.headers.get("Location", "nowhere"))
            return (
                f". It leads to {place} and is not followed; if that is right, set "
                "config.victim.endpoint to it."
            )
        return ""

    def _shown(self, received: _Received) -> str:
        """The status of a response and the beginning of what it says, without the token."""
        text = self._without_token(received.body.decode(errors="replace"))
        printable = "".join(c if c.isprintable() else " " for c in text[: 8 * SHOWN])
        kind = received.headers.get("Content-Type", "").partition(";")[0] or "no type"
        return f"{received.status}, {kind}: {' '.join(printable.split())[:SHOWN] or 'nothing'}"

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "TOKEN") if self._token else text


class _Pace:
    """When the next request may go: so many a second, and none before a service allows it."""

    def __init__(self, requests_per_second: float):
        self._interval = 1 / requests_per_second if requests_per_second else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Waits until a request may go."""
        while (seconds := self._next - time.monotonic()) > 0:  # others may go first
            await asyncio.sleep(seconds)
        self._next = time.monotonic() + self._interval

    def hold(self, seconds: float) -> None:
        """Lets no request go for so long."""
        self._next = max(self._next, time.monotonic() + seconds)


def _beside_loops[Result](call: Callable[[], Result]) -> Result:
    """Calls what runs a loop: in a thread of its own where one runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def _host(address: str) -> str:
    """The host of a service's address.

    Raises:
      UserError: it is no address, or one with a secret, which is not shown.
    """
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        url = httpx.URL()
    secrets = [name for name in url.params if SECRET.fullmatch(name)]
    if url.userinfo or secrets:
        found = f"a parameter {secrets[0]!r}" if secrets else "a user or password"
        raise UserError(
            f"config.victim.endpoint has {found} in it, which would be saved with the "
            "configuration: leave it out, and let config.victim.token_env name a variable"
        )
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) >= 2**16:
        raise UserError(
            "config.victim.endpoint is no address of a service, such as "
            "http://localhost:8501/v1/models/NAME:predict"
        )
    return url.host


def _is_loopback(host: str) -> bool:
    """Whether it is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(variable: str) -> str:
    """The token in an environment variable; "" without one.

    Raises:
      UserError: there is none, or it cannot be sent; the token is not shown.
    """
    token = os.environ.get(variable, "").strip() if variable else ""
    if variable and not token:
        raise UserError(f"config.victim.token_env: no environment variable {variable} is set")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            f"config.victim.token_env: what the environment variable {variable} holds is no token; "
            "it must be ASCII without spaces"
        )
    return token


def _seconds(retry_after: str) -> float:
    """What a Retry-After says, in seconds or as a date; 0 where it says neither."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after))
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0


def _body(images: np.ndarray, image_format: str) -> bytes:
    """The body of a request."""
    instances: list[object]
    if image_format == "png":
        instances = [{"b64": base64.b64encode(_png(image)).decode()} for image in images]
    else:
        instances = images.tolist()
    return json.dumps({"instances": instances}, separators=(",", ":")).encode()


def _png(image: np.ndarray) -> bytes:
    """A PNG of an image [H, W, channels]."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()
