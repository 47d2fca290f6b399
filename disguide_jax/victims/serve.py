"""Serves a victim's weights over HTTP, in the protocol of `service`, to try an extraction with.

It needs what pip install 'disguide_jax[serve]' brings.
"""

import base64
import dataclasses
import hmac
import io
import json
import math
import random
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from disguide_jax import paths
from disguide_jax.core import pixels
from disguide_jax.core.types import Array
from disguide_jax.errors import UserError
from disguide_jax.files import datasets
from disguide_jax.options import VictimConfig
from disguide_jax.victims.network import Victim, load_network, make_victim, normalisation

PATH = "/v1/models/victim:predict"
MOST_AT_ONCE = 128  # images that the network is asked about, a power of 2
MOST_BYTES = 64 * 2**20  # of a request
SHUTDOWN_SECONDS = 5  # for answers under way
WHITE = np.iinfo(np.uint8).max


class Model(NamedTuple):
    """A classifier that is served."""

    name: str
    size: int  # height and width of its images
    channels: int
    num_classes: int
    classify: Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, channels] -> [N, K]


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model is served."""

    labels: str = "soft"  # probabilities; or hard, labels
    top_k: int = 0  # classes whose probabilities are told, those of others being 0; 0: all
    decimals: int = 0  # to which probabilities are rounded; 0: they are not
    requests_per_second: float = 0.0  # beyond it requests are answered 429; 0: all are welcome
    failures: float = 0.0  # share of requests that are answered 500
    seed: int = 0  # of the failures
    token: str = dataclasses.field(
        default="", repr=False
    )  # that requests must bear; "" asks for none
    count: str = ""  # a file that gets a line for each request: how many images it had

    def __post_init__(self) -> None:
        right = {
            "labels": (self.labels in ("soft", "hard"), "soft or hard"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "decimals": (0 <= self.decimals <= 12, "from 0 to 12"),
            "requests_per_second": (0 <= self.requests_per_second < math.inf, "at least 0"),
            "failures": (0 <= self.failures <= 1, "from 0 to 1"),
        }
        for name, (is_right, what) in right.items():
            if not is_right:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be {what}")


def load(weights: str, dataset: str, data_dir: str = "") -> Model:
    """A model from a file of weights.

    Args:
      weights: the file, or embedded:NAME.
      dataset: whose images it classifies, and whose normalisation it has unless the file says.
      data_dir: where the data set lies; only those of one's own are looked into.

    Raises:
      UserError: there are no such weights or data set, or they do not fit each other.
    """
    config, info = VictimConfig(weights), datasets.describe(dataset, data_dir)
    net, variables, found = load_network(
        config, num_classes=info.num_classes, size=info.size, channels=info.channels
    )
    mean, std = normalisation(config, info)
    victim = make_victim(net, variables, mean=mean, std=std, hard_labels=False)

    @jax.jit
    def ask(victim: Victim, images: Array) -> Array:
        return victim(pixels.decode(images))

    def classify(images: np.ndarray) -> np.ndarray:
        return in_batches(lambda batch: np.asarray(ask(victim, batch)), images)

    name = f"{weights} ({found.model})"
    return Model(name, info.size, info.channels, info.num_classes, classify)


def in_batches(ask: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """Answers to any number of images, asked in batches padded to powers of 2."""
    answers = []
    for start in range(0, len(images), MOST_AT_ONCE):
        batch = images[start : start + MOST_AT_ONCE]
        size = 1 << (len(batch) - 1).bit_length()  # few sizes to compile for
        padded = np.pad(batch, [(0, size - len(batch))] + [(0, 0)] * 3)
        answers.append(ask(padded)[: len(batch)])
    return np.concatenate(answers)


def make_app(model: Model, options: Options) -> Starlette:
    """What answers requests about a model.

    Raises:
      UserError: the file for the count cannot be written.
    """
    bucket, rng = _Bucket(options.requests_per_second), random.Random(options.seed)
    if options.count:
        try:
            paths.expanded(options.count).open("a").close()
        except OSError as error:
            raise UserError(f"--count: {options.count} cannot be written: {error}") from error

    def describe(request: Request) -> Response:
        del request
        about = {"model": model.name, "image": _shape(model), "num_classes": model.num_classes}
        kind = {name: getattr(options, name) for name in ("labels", "top_k", "decimals")}
        return JSONResponse(about | kind | {"predict": PATH})

    async def predict(request: Request) -> Response:
        _authorise(request, options.token)
        images = parse(await _body(request), model)
        if options.count:
            with paths.expanded(options.count).open("a") as file:
                file.write(f"{len(images)}\n")
        if seconds := bucket.take():
            after = {"Retry-After": str(math.ceil(seconds))}
            raise HTTPException(429, f"at most {options.requests_per_second:g} a second", after)
        if rng.random() < options.failures:
            raise HTTPException(500, "one of the failures that --failures asks for")
        probs = await run_in_threadpool(model.classify, images)
        return JSONResponse({"predictions": told(probs, options)})

    return Starlette(
        routes=[
            Route("/", describe),
            Route("/healthz", describe),
            Route(PATH, predict, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _error, ClientDisconnect: _gone},
    )


def parse(body: bytes, model: Model) -> np.ndarray:
    """The images of a request, uint8 [N, H, W, channels].

    Raises:
      HTTPException: it has none that fit the model; says what is wrong.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from error
    instances = request.get("instances") if isinstance(request, dict) else None
    if not isinstance(instances, list) or not instances:
        raise HTTPException(422, 'the body must be {"instances": [image, ...]}')
    images = []
    for i, instance in enumerate(instances):
        try:
            is_png = isinstance(instance, dict)
            images.append(_from_png(instance, model) if is_png else _from_lists(instance, model))
        except ValueError as error:
            raise HTTPException(422, f"instances[{i}]: {error}") from error
    return np.stack(images)


def told(probs: np.ndarray, options: Options) -> list[Any]:
    """What is answered for probabilities [N, K]."""
    if options.labels == "hard":
        return probs.argmax(axis=1).tolist()
    probs = probs.astype(np.float64)
    if options.top_k:
        others = np.argsort(-probs, axis=1, kind="stable")[:, options.top_k :]
        np.put_along_axis(probs, others, 0.0, axis=1)
    return (probs.round(options.decimals) if options.decimals else probs).tolist()


def serve(model: Model, options: Options, host: str, port: int) -> None:
    """Prints the address and answers until SIGINT or SIGTERM, which the process gets after that.

    Args:
      model: that is served.
      options: how it is.
      host: the address to listen at; 127.0.0.1 is reached from this machine only.
      port: to listen at; 0 is any that is free.

    Raises:
      UserError: it cannot listen there, or the file for the count cannot be written.
    """
    app, is_ipv6 = make_app(model, options), ":" in host
    if not 0 <= port < 2**16:
        raise UserError(f"--port is {port}; it must be from 0 to {2**16 - 1:,}")
    try:
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"cannot listen at --host {host} --port {port}: {error}") from error
    address = f"[{host}]" if is_ipv6 else host
    print(f"{model.name} answers at http://{address}:{listening.getsockname()[1]}{PATH}")
    print("Ctrl-C ends it.", flush=True)
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])


class _Bucket:
    """Lets a number of requests through in a second, and at most a second's at once."""

    def __init__(self, requests_per_second: float):
        self._rate, self._most = requests_per_second, max(1.0, requests_per_second)
        self._left, self._time = self._most, time.monotonic()

    def take(self) -> float:
        """Lets a request through: 0; or the seconds after which it would."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._time) * self._rate)
        self._time = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0


def _shape(model: Model) -> list[int]:
    return [model.size, model.size, model.channels]


def _authorise(request: Request, token: str) -> None:
    borne = request.headers.get("Authorization", "")
    if token and not hmac.compare_digest(borne.encode(), f"Bearer {token}".encode()):
        raise HTTPException(401, "the request must bear the token", {"WWW-Authenticate": "Bearer"})


async def _body(request: Request) -> bytes:
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MOST_BYTES:
            raise HTTPException(413, f"a request has at most {MOST_BYTES:,} bytes")
    return bytes(received)


def _from_lists(instance: Any, model: Model) -> np.ndarray:
    shape = _shape(model)
    wanted = f"it must be integers from 0 to {WHITE} in nested lists {shape}"
    try:
        image = np.asarray(instance)
    except ValueError as error:
        raise ValueError(f"{wanted}, not ragged ones") from error
    if image.dtype.kind not in "iu" or list(image.shape) != shape:
        raise ValueError(f"{wanted}; it is {image.dtype} {list(image.shape)}")
    if image.min() < 0 or image.max() > WHITE:
        raise ValueError(f"{wanted}; it holds {image.min()} to {image.max()}")
    return image.astype(np.uint8)


def _from_png(instance: dict[str, Any], model: Model) -> np.ndarray:
    size, mode = (model.size, model.size), "L" if model.channels == 1 else "RGB"
    try:
        data = base64.b64decode(instance["b64"], validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as png:
            found = (png.size, png.mode)  # before it is unpacked
            image = np.asarray(png) if found == (size, mode) else None
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f'it is no {{"b64": base64 of a PNG}}: {error}') from error
    if image is None:
        raise ValueError(f"it must be a PNG of {size} {mode}; it is of {found[0]} {found[1]}")
    return image.reshape(_shape(model))


def _error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _gone(request: Request, error: Exception) -> Response:
    """Answers nobody: who asked hung up before the request was whole."""
    del request, error
    return Response(status_code=400)
