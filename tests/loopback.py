"""A service on this machine that answers whatever a test wants, and remembers what it was sent."""

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import numpy as np
from PIL import Image

NUM_CLASSES = 5


class Asked(NamedTuple):
    """A request that arrived."""

    images: np.ndarray  # [N, H, W, channels]
    headers: dict[str, str]
    path: str
    time: float
    connection: tuple[str, int]


class Reply(NamedTuple):
    """What the service answers."""

    body: bytes | str | object = ""  # objects become JSON
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012
    sent: int | None = None  # bytes of the body, after which the service hangs up


def probabilities(images: np.ndarray) -> list[list[float]]:
    """Answers that follow the first pixel of every image."""
    return (np.eye(NUM_CLASSES)[images[:, 0, 0, 0] % NUM_CLASSES] * 0.9 + 0.02).tolist()


def right(images: np.ndarray) -> Reply:
    return Reply({"predictions": probabilities(images)})


class Service:
    """Answers the i-th request with `reply(i, images)`, or as it should."""

    def __init__(self, reply: Callable[[int, np.ndarray], Reply | None]):
        self.reply, self.asked, self.lock = reply, [], threading.Lock()
        self.ends = threading.Event()  # to hang until

    @property
    def received(self) -> int:
        return sum(len(asked.images) for asked in self.asked)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        instances = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        images = np.stack([decode(instance) for instance in instances["instances"]])
        connection = handler.client_address
        asked = Asked(images, dict(handler.headers), handler.path, time.monotonic(), connection)
        with self.lock:
            number = len(self.asked)
            self.asked.append(asked)
        reply = self.reply(number, images) or right(images)
        body = reply.body if isinstance(reply.body, bytes | str) else json.dumps(reply.body)
        body = body.encode() if isinstance(body, str) else body
        handler.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: reply.sent])
        if reply.sent is not None:
            handler.close_connection = True


def decode(instance: list | dict) -> np.ndarray:
    if isinstance(instance, list):
        return np.array(instance, np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(instance["b64"])), formats=["PNG"]) as png:
        image = np.asarray(png)
    return image[..., None] if image.ndim == 2 else image


@contextlib.contextmanager
def serving(
    reply: Callable[[int, np.ndarray], Reply | None] = lambda i, images: None, tls=None, port=0
) -> Iterator[Service]:
    """A service and, as its attribute, its address; it ends with the block."""
    service = Service(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10
        disable_nagle_algorithm = True  # header and body are written one after the other

        def do_POST(self):
            service.answer(self)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, request, client_address):
            pass  # who asked hung up

    with Server(("127.0.0.1", port), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        host, scheme = f"127.0.0.1:{server.server_address[1]}", "https" if tls else "http"
        service.address, service.server = f"{scheme}://{host}/v1/models/m:predict", server
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield service
        finally:
            service.ends.set()
            server.shutdown()
            thread.join()
