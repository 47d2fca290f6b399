"""The server to try an extraction with: what it answers, counts and refuses."""

import asyncio
import base64
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, load_script
from PIL import Image

from disguide_jax.core import pixels
from disguide_jax.errors import UserError
from disguide_jax.files import datasets
from disguide_jax.options import VictimConfig
from disguide_jax.victims import network, serve
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.serve import Model, Options
from disguide_jax.victims.service import Service

K = 4
WEIGHTS = "embedded:digits-lenet5.safetensors"


def classify(images):
    """Probabilities of 0.4, 0.3, 0.2 and 0.1, beginning with the class of the first pixel."""
    order = (np.arange(K)[None] - images[:, 0, 0, :1]) % K
    return np.array([0.4, 0.3, 0.2, 0.1], np.float32)[order]


COLOUR = Model("colours", 8, 3, K, classify)
GREY = Model("greys", 8, 1, K, classify)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
IMAGES[:, 0, 0, 0] = [0, 255, 2]
LISTS = {"instances": IMAGES.tolist()}


def b64(image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return {"b64": base64.b64encode(file.getvalue()).decode()}


def talk(app, *requests):
    """The responses to requests, each (method, path, options), one after the other."""

    async def all_of_them():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return [
                await client.request(method, path, **options) for method, path, options in requests
            ]

    return asyncio.run(all_of_them())


def post(body=LISTS, model=COLOUR, num=1, headers=None, **options):
    """The responses to the same request, `num` times."""
    sent = {"content": body} if isinstance(body, bytes | str) else {"json": body}
    app = serve.make_app(model, Options(**options))
    return talk(app, *[("POST", serve.PATH, sent | {"headers": headers})] * num)


def predictions(*arguments, **options):
    (response,) = post(*arguments, **options)
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


def test_images_come_as_lists_or_as_png():
    right = classify(IMAGES).tolist()
    assert predictions() == right
    assert predictions({"instances": [b64(image) for image in IMAGES]}) == right
    mixed = [b64(IMAGES[0]), *IMAGES[1:].tolist()]
    assert predictions({"instances": mixed, "signature_name": "x"}) == right


def test_images_of_one_channel_too():
    grey = IMAGES[..., :1]
    right = classify(grey).tolist()
    assert predictions({"instances": grey.tolist()}, GREY) == right
    assert predictions({"instances": [b64(image[..., 0]) for image in grey]}, GREY) == right


def test_labels_top_k_and_decimals():
    assert predictions(labels="hard") == [0, 3, 2]
    np.testing.assert_allclose(predictions(top_k=2)[0], [0.4, 0.3, 0, 0], atol=1e-7)
    assert predictions(decimals=1)[1] == [0.3, 0.2, 0.1, 0.4]
    assert predictions(decimals=1, top_k=3)[2] == [0.2, 0, 0.4, 0.3]
    assert predictions(top_k=9) == predictions()


WRONG = {
    "no json": (400, "the body is no JSON"),
    "[" * 99_999: (400, "the body is no JSON"),
    b"\xff\xfe\xfd": (400, "the body is no JSON"),
    "[]": (422, 'the body must be {"instances": [image, ...]}'),
    "{}": (422, 'the body must be {"instances": [image, ...]}'),
    '{"instances": []}': (422, 'the body must be {"instances": [image, ...]}'),
    '{"instances": {"b64": ""}}': (422, 'the body must be {"instances": [image, ...]}'),
    '{"instances": [7]}': (422, r"instances[0]: it must be integers from 0 to 255 in nested"),
    '{"instances": ["7"]}': (422, "instances[0]: it must be integers from 0 to 255 in nested"),
    '{"instances": [null]}': (422, "instances[0]: it must be integers from 0 to 255 in nested"),
    '{"instances": [[[1, 2], [3]]]}': (422, "not ragged ones"),
    '{"instances": [{}]}': (422, 'instances[0]: it is no {"b64": base64 of a PNG}'),
    '{"instances": [{"b64": null}]}': (422, 'it is no {"b64": base64 of a PNG}'),
    '{"instances": [{"b64": "not base64"}]}': (422, 'it is no {"b64": base64 of a PNG}'),
    '{"instances": [{"b64": "AAAA"}]}': (422, 'it is no {"b64": base64 of a PNG}'),
}


@pytest.mark.parametrize(("body", "status", "said"), [(b, *right) for b, right in WRONG.items()])
def test_a_wrong_request_is_told_what_is_wrong(body, status, said):
    (response,) = post(body)
    assert response.status_code == status
    assert said in response.json()["error"]


def wrong_images():
    image = IMAGES[1].copy()
    yield image.astype(int) - 1, "it holds -1 to 254"
    yield image.astype(int) + 1, "to 256"
    yield image / 255, "it is float64 [8, 8, 3]"
    yield image[:7], "it is int64 [7, 8, 3]"
    yield image[..., :1], "it is int64 [8, 8, 1]"
    yield image.transpose(2, 0, 1), "it is int64 [3, 8, 8]"
    yield image > 5, "it is bool [8, 8, 3]"


@pytest.mark.parametrize(("image", "said"), list(wrong_images()))
def test_a_wrong_image_is_told_what_is_wrong(image, said):
    (response,) = post({"instances": [IMAGES[0].tolist(), image.tolist()]})
    assert response.status_code == 422
    error = response.json()["error"]
    assert error.startswith("instances[1]: it must be integers from 0 to 255 in nested lists")
    assert said in error


def cut(instance):
    return {"b64": base64.b64encode(base64.b64decode(instance["b64"])[:100]).decode()}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b64(IMAGES[0, :4]), "(8, 8) RGB; it is of (8, 4) RGB"),
        (lambda: b64(IMAGES[0, ..., 0]), "it is of (8, 8) L"),
        (lambda: b64(np.dstack([IMAGES[0], IMAGES[0]])[..., :4]), "it is of (8, 8) RGBA"),
        (lambda: b64(IMAGES[0], "BMP"), "base64 of a PNG"),
        (lambda: cut(b64(IMAGES[0])), "base64 of a PNG"),
        (lambda: b64(np.zeros((20_000, 10_000), bool)), "decompression bomb"),
    ],
)
def test_a_wrong_png_is_told_what_is_wrong(make, said):
    (response,) = post({"instances": [make()]})
    assert response.status_code == 422
    assert said in response.json()["error"]


def test_a_request_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(serve, "MOST_BYTES", 100)
    (response,) = post()
    assert response.status_code == 413
    assert response.json() == {"error": "a request has at most 100 bytes"}


def test_other_paths_and_methods_are_refused_in_json():
    app = serve.make_app(COLOUR, Options())
    wrong, method = talk(app, ("POST", "/predict", {"json": LISTS}), ("GET", serve.PATH, {}))
    assert (wrong.status_code, wrong.json()) == (404, {"error": "Not Found"})
    assert (method.status_code, method.json()) == (405, {"error": "Method Not Allowed"})


def test_it_says_what_it_serves_and_not_its_token():
    options = Options(labels="hard", top_k=2, token="sesame", count="")
    app = serve.make_app(COLOUR, options)
    for response in talk(app, ("GET", "/", {}), ("GET", "/healthz", {})):
        assert response.status_code == 200
        assert response.json() == {
            "model": "colours",
            "image": [8, 8, 3],
            "num_classes": K,
            "labels": "hard",
            "top_k": 2,
            "decimals": 0,
            "predict": serve.PATH,
        }
    assert "sesame" not in repr(options)


def test_who_does_not_bear_the_token_is_refused(tmp_path):
    count = tmp_path / "count"
    for headers in ({}, {"Authorization": "sesame"}, {"Authorization": "Bearer sesamé".encode()}):
        (response,) = post(token="sesame", headers=headers, count=str(count))
        assert response.status_code == 401
        assert response.json() == {"error": "the request must bear the token"}
    assert count.read_text() == "", "nothing was looked into"
    (response,) = post(token="sesame", headers={"Authorization": "Bearer sesame"})
    assert response.status_code == 200


def test_a_share_of_requests_fails_always_the_same(tmp_path):
    count = tmp_path / "count"
    statuses = [
        [r.status_code for r in post(num=60, failures=0.2, seed=seed, count=str(count))]
        for seed in (1, 1, 2)
    ]
    assert statuses[0] == statuses[1] != statuses[2]
    assert 4 <= statuses[0].count(500) <= 24
    assert set(statuses[0]) == {200, 500}
    assert sum(map(int, count.read_text().split())) == 3 * 60 * 3, "those that fail, too"


def test_beyond_the_rate_it_says_when_to_come_back(monkeypatch, tmp_path):
    now, count = 100.0, tmp_path / "count"
    monkeypatch.setattr(serve, "time", types.SimpleNamespace(monotonic=lambda: now))
    bucket = serve._Bucket(2.0)
    assert [bucket.take() for _ in range(4)] == [0, 0, 0.5, 0.5]
    now += 0.5
    assert [bucket.take() for _ in range(2)] == [0, 0.5]
    now += 60
    assert [bucket.take() for _ in range(3)] == [0, 0, 0.5]
    slow = serve._Bucket(0.25)
    assert [slow.take() for _ in range(2)] == [0, 4]

    responses = post(num=3, requests_per_second=0.5, count=str(count))
    assert [response.status_code for response in responses] == [200, 429, 429]
    assert responses[1].headers["Retry-After"] == "2"
    assert responses[1].json() == {"error": "at most 0.5 a second"}
    assert count.read_text() == "3\n3\n3\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": "both"}, "--labels is both; it must be soft or hard"),
        ({"top_k": -1}, "--top_k is -1; it must be at least 0"),
        ({"decimals": 13}, "--decimals is 13; it must be from 0 to 12"),
        ({"failures": 1.5}, r"--failures is 1.5; it must be from 0 to 1"),
        ({"requests_per_second": float("nan")}, "--requests_per_second is nan"),
        ({"count": "/nowhere/at/all"}, "--count: /nowhere/at/all cannot be written"),
    ],
)
def test_wrong_options_are_named(options, said):
    with pytest.raises(UserError, match=said):
        serve.make_app(COLOUR, Options(**options))


def test_batches_are_padded_to_a_few_sizes():
    sizes = []

    def ask(images):
        sizes.append(len(images))
        return images[:, 0, 0, 0] * 2

    for num in (1, 2, 8, 9, 33, 128, 129, 300):
        images = np.arange(num).reshape(num, 1, 1, 1)
        np.testing.assert_array_equal(serve.in_batches(ask, images), np.arange(num) * 2)
    assert sizes == [1, 2, 8, 16, 64, 128, 128, 1, 128, 128, 64]


def test_a_file_of_weights_answers_as_the_victim_does(tmp_path):
    test = datasets.load("digits", "test")
    model = serve.load(WEIGHTS, "digits")
    assert model[:4] == (f"{WEIGHTS} (lenet5)", 32, 1, 10)
    config, info = VictimConfig(WEIGHTS), datasets.describe("digits")
    net, variables, _ = network.load_network(config, num_classes=10, size=32, channels=1)
    mean, std = network.normalisation(config, info)
    victim = network.make_victim(net, variables, mean=mean, std=std, hard_labels=False)
    images = test.images[:8]
    right = jax.jit(lambda victim, x: victim(x))(victim, pixels.decode(jnp.asarray(images)))
    np.testing.assert_allclose(model.classify(images), right, atol=1e-6)
    images = np.zeros((1, 32, 32, 1), np.uint8)
    np.savez(tmp_path / "hundred.npz", test_images=images, classes=np.arange(100))
    with pytest.raises(UserError, match="num_classes is 10"):
        serve.load(WEIGHTS, "hundred", str(tmp_path))


@contextlib.contextmanager
def process(*arguments, env=None):
    """The real thing and the address that it prints; it is killed if need be."""
    command = [sys.executable, ROOT / "scripts/serve_victim.py", *arguments]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def test_an_extraction_asks_it_and_both_count_the_same(tmp_path, monkeypatch):
    count, counted = tmp_path / "count", []
    monkeypatch.setenv("TOKEN", "sesame")
    arguments = f"--weights {WEIGHTS} --dataset digits --port 0 --count {count} --seed 3"
    with process(*arguments.split(), "--failures=0.3", "--token_env=TOKEN") as started:
        address = re.search(r"http://127\.0\.0\.1:\d+/\S+", started.stdout.readline())[0]
        assert started.stdout.readline() == "Ctrl-C ends it.\n"
        test = datasets.load("digits", "test")
        config = VictimConfig(
            endpoint=address, token_env="TOKEN", images_per_request=8, concurrency=4
        )
        with contextlib.closing(Service(config, Contract(10, True))) as endpoint:
            answers = endpoint.ask(test.images[:96], counted.append)
            started.send_signal(signal.SIGTERM)  # while connections are open
            output, errors = started.communicate(timeout=20)
    assert (answers == test.labels[:96]).mean() > 0.9
    assert counted
    assert sum(map(int, count.read_text().split())) == 96 + sum(counted)
    assert started.returncode == 0
    assert (output, errors) == ("", "")


def test_who_hangs_up_leaves_no_traceback():
    with process("--weights", WEIGHTS, "--dataset=digits", "--port=0") as started:
        port = int(re.search(r":(\d+)/", started.stdout.readline())[1])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                f"POST {serve.PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{".encode()
            )
            time.sleep(0.1)
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
        started.send_signal(signal.SIGINT)
        assert started.communicate(timeout=20)[1] == ""
    assert started.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--weights=none.pt", "there is no file none.pt"),
        ("--weights={weights} --port={taken}", "cannot listen at --host 127.0.0.1 --port"),
        ("--weights={weights} --port=65536", "--port is 65536; it must be from 0 to 65,535"),
        ("--weights={weights} --token_env=TOKEN", "no environment variable TOKEN is set"),
        ("--weights={weights} --failures=2", "--failures is 2.0"),
        ("--weights={weights} --dataset=nothing", "unknown data set 'nothing'"),
    ],
)
def test_mistakes_on_the_command_line_are_told(monkeypatch, arguments, said):
    monkeypatch.delenv("TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = arguments.format(weights=WEIGHTS, taken=taken.getsockname()[1])
        argv = ["serve_victim.py", "--dataset=digits", *arguments.split()]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # our process keeps its own
        with pytest.raises(UserError, match=said):
            load_script("serve_victim").main()


def test_without_what_it_needs_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve_victim.py", "--dataset=digits", "--weights=x"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # our process keeps its own
    monkeypatch.delitem(sys.modules, "disguide_jax.victims.serve")
    monkeypatch.delattr("disguide_jax.victims.serve")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"uvicorn.*: pip install 'disguide_jax\[serve\]'"):
        load_script("serve_victim").main()
