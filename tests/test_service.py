"""A victim behind HTTP: what is sent, counted, repeated and refused."""

import asyncio
import contextlib
import functools
import gzip
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import httpx
import numpy as np
import pytest
from conftest import ROOT
from loopback import NUM_CLASSES, Reply, probabilities, right, serving

from disguide_jax.errors import UserError
from disguide_jax.options import VictimConfig
from disguide_jax.victims import service
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.service import Service

SOFT, HARD = Contract(NUM_CLASSES, False), Contract(NUM_CLASSES, True)
TOKEN = "s3same-open"


CONTEXTS = functools.cache(lambda file, create=httpx.create_ssl_context: create())


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    """The first repetition comes soon, and all clients share what takes 50 ms to read."""
    monkeypatch.setattr(service, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(httpx, "create_ssl_context", lambda: CONTEXTS(os.getenv("SSL_CERT_FILE")))


@contextlib.contextmanager
def client(address, contract=SOFT, **options):
    endpoint = Service(VictimConfig(endpoint=address, **options), contract)
    with contextlib.closing(endpoint):
        yield endpoint


def ask(address, images=None, contract=SOFT, **options):
    """Asks once; the answers, and what was counted."""
    counted = []
    with client(address, contract, **options) as endpoint:
        answers = endpoint.ask(some(4) if images is None else images, counted.append)
    return answers, counted


def mistake(address, images=None, contract=SOFT, **options):
    """The message of the UserError, and what was counted."""
    counted = []
    with client(address, contract, **options) as endpoint, pytest.raises(UserError) as raised:
        endpoint.ask(some(4) if images is None else images, counted.append)
    return str(raised.value), counted


def some(num, channels=1):
    """Images that all differ."""
    images = np.random.default_rng(0).integers(0, 256, (num, 8, 8, channels), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(num)
    return images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_format", ["list", "png"])
def test_images_arrive_as_they_are_and_answers_come_in_their_order(image_format, channels):
    images = some(11, channels)
    with serving() as there:
        answers, counted = ask(
            there.address, images, image_format=image_format, images_per_request=4
        )
    np.testing.assert_allclose(answers, probabilities(images), rtol=1e-6)
    assert answers.dtype == np.float32
    assert counted == []
    assert [len(asked.images) for asked in there.asked] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([a.images for a in there.asked]), images)
    assert {asked.headers["Content-Type"] for asked in there.asked} == {"application/json"}
    assert {asked.path for asked in there.asked} == {"/v1/models/m:predict"}


def test_labels_are_answers_too():
    def reply(number, images):
        return Reply({"predictions": (images[:, 0, 0, 0] % NUM_CLASSES).tolist()})

    with serving(reply) as there:
        answers, _ = ask(there.address, some(7), HARD)
    assert answers.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert answers.dtype == np.int32


def test_an_answer_may_be_compressed():
    def reply(number, images):
        body = gzip.compress(json.dumps(right(images).body).encode())
        return Reply(body, headers={"Content-Encoding": "gzip"})

    with serving(reply) as there:
        assert ask(there.address)[0].shape == (4, NUM_CLASSES)


def test_a_connection_is_used_again():
    with serving() as there, client(there.address, images_per_request=1) as endpoint:
        for _ in range(3):
            endpoint.ask(some(4), pytest.fail)
    assert len(there.asked) == 12
    assert len({asked.connection for asked in there.asked}) == 1


def test_a_connection_that_the_service_closed_meanwhile_costs_nothing():
    def reply(number, images):
        return right(images)._replace(sent=10**6)  # all, and hangs up

    with serving(reply) as there, client(there.address) as endpoint:
        for _ in range(3):
            endpoint.ask(some(4), pytest.fail)
            time.sleep(0.05)
    assert len({asked.connection for asked in there.asked}) == 3


def test_so_many_requests_as_concurrency_says_are_under_way_and_no_more():
    all_there = threading.Barrier(4)
    under_way, most = 0, 0

    def reply(number, images):
        nonlocal under_way, most
        with there.lock:
            under_way += 1
            most = max(most, under_way)
        all_there.wait(5)
        time.sleep(0.02 * (4 - number % 4))  # the first comes last
        with there.lock:
            under_way -= 1
        return None

    images = some(24)
    with serving(reply) as there:
        answers, _ = ask(there.address, images, images_per_request=3, concurrency=4)
    np.testing.assert_allclose(answers, probabilities(images), rtol=1e-6)
    assert most == 4
    assert len({asked.connection for asked in there.asked}) == 4


def test_who_waits_for_a_turn_does_not_time_out():
    with serving(lambda number, images: time.sleep(0.1)) as there:
        _, counted = ask(there.address, some(8), images_per_request=1, timeout_seconds=0.6)
    assert counted == []


def test_the_rate_is_kept_over_all_connections_calls_and_repetitions():
    def reply(number, images):
        return Reply(status=503) if number in (1, 2) else None

    with (
        serving(reply) as there,
        client(
            there.address, images_per_request=1, concurrency=8, requests_per_second=50
        ) as endpoint,
    ):
        start, busy = time.monotonic(), time.thread_time()
        endpoint.ask(some(8), lambda num: None)
        endpoint.ask(some(8), lambda num: None)
        seconds, busy = time.monotonic() - start, time.thread_time() - busy
    assert len(there.asked) == 18
    for i, arrival in enumerate(sorted(asked.time for asked in there.asked)):
        assert arrival - start >= 0.02 * i - 1e-3
    assert 17 * 0.02 <= seconds < 3
    assert busy < seconds, "it sleeps"


def test_one_failure_in_five_costs_images_and_nothing_else():
    images, counted = some(60), []

    def reply(number, images):
        return Reply("out of order", 500) if number % 5 == 1 else None

    with (
        serving(reply) as there,
        client(there.address, images_per_request=4, concurrency=3) as endpoint,
    ):
        answers = endpoint.ask(images, counted.append)
    np.testing.assert_allclose(answers, probabilities(images), rtol=1e-6)
    assert counted == [4, 4, 4, 4]
    assert there.received == 60 + sum(counted)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(status):
    with serving(lambda i, images: Reply(status=status) if i < 2 else None) as there:
        answers, counted = ask(there.address)
    assert answers.shape == (4, NUM_CLASSES)
    assert counted == [4, 4]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_holds_for_every_request(status):
    def reply(number, images):
        return Reply(status=status, headers={"Retry-After": "0.3"}) if number == 0 else None

    with serving(reply) as there:
        ask(there.address, some(6), images_per_request=1)
    first, *others = (asked.time for asked in there.asked)
    assert len(others) == 6
    assert min(others) - first >= 0.3


@pytest.mark.parametrize(
    "after",
    ["-3", "soon", "nan", formatdate(usegmt=True), formatdate(0)],
    ids=["past", "soon", "nan", "now", "1970"],  # the same in every process
)
def test_a_retry_after_that_is_past_or_none_is_no_reason_to_wait(after):
    def reply(number, images):
        return Reply(status=429, headers={"Retry-After": after}) if number == 0 else None

    with serving(reply) as there:
        ask(there.address)
    first, second = (asked.time for asked in there.asked)
    assert second - first < 1


@pytest.mark.parametrize("after", ["1000", "date", "inf"])
def test_a_retry_after_that_is_too_long_ends_it_and_is_said(after):
    after = formatdate(time.time() + 1000, usegmt=True) if after == "date" else after
    with serving(lambda i, images: Reply("", 429, {"Retry-After": after})) as there:
        message, counted = mistake(there.address)
    assert there.address in message
    assert re.search(r"come back in (1,000|9\d\d|inf) seconds", message)
    assert "at most 120 are waited" in message
    assert len(there.asked) == 1
    assert counted == []


def test_a_service_that_hangs_is_left_and_asked_again():
    def reply(number, images):
        there.ends.wait(10)

    with serving(reply) as there:
        start = time.monotonic()
        message, counted = mistake(there.address, timeout_seconds=0.1, retries=2)
    assert time.monotonic() - start < 5
    assert "request 1 failed, at attempt 3 of 3 too: no whole answer in 0.1 seconds" in message
    assert "the same command goes on" in message
    assert counted == [4, 4]
    assert there.received == 4 + sum(counted)


def test_it_is_asked_and_closed_where_an_event_loop_runs_already_as_in_a_notebook():
    async def cell(address):
        return ask(address), mistake(f"{address}absent", retries=0)

    with serving(lambda number, images: Reply("", 404) if number else None) as there:
        (answers, counted), (message, _) = asyncio.run(cell(there.address))
    np.testing.assert_allclose(answers, probabilities(some(4)), atol=1e-6)
    assert counted == []
    assert "404" in message


def test_a_service_that_answers_for_ever_is_left():
    listening = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip():
        connection, _ = listening.accept()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not stop.wait(0.02):
                connection.sendall(b" ")
        connection.close()

    thread = threading.Thread(target=drip)
    thread.start()
    with listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        message, _ = mistake(address, timeout_seconds=0.2, retries=0)
        stop.set()
        thread.join()
    assert "no whole answer in 0.2 seconds" in message


@pytest.mark.parametrize("sent", [0, 20])
def test_a_connection_that_breaks_is_made_again(sent):
    def reply(number, images):
        return right(images)._replace(sent=sent) if number == 0 else None

    with serving(reply) as there:
        answers, counted = ask(there.address)
    assert answers.shape == (4, NUM_CLASSES)
    assert counted == [4]
    assert there.received == 8


def test_what_is_no_http_is_told_after_the_last_try():
    listening = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection, _ = listening.accept()
        received = b""
        with connection:
            while b"]}" not in received:
                received += connection.recv(10**6)
            connection.sendall(b"220 mail.example.org ESMTP\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    with listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        message, _ = mistake(address, retries=0)
    thread.join()
    assert "failed, at attempt 1 of 1 too" in message
    assert "220 mail" in message


def test_when_no_try_is_left_the_last_failure_is_told():
    def reply(number, images):
        return Reply(f"<b>failure {number}</b>", 500, {"Content-Type": "text/html; charset=x"})

    with serving(reply) as there:
        message, counted = mistake(there.address, retries=3)
    assert "request 1 failed, at attempt 4 of 4 too" in message
    assert "500, text/html: <b>failure 3</b>" in message
    assert counted == [4, 4, 4]
    assert there.received == 16


def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_images_that_never_left_are_not_counted():
    address = f"http://127.0.0.1:{unused_port()}/"
    message, counted = mistake(address, some(10), images_per_request=4, retries=1)
    assert "failed, at attempt 2 of 2 too" in message
    assert counted == [0, -10]


def test_a_service_that_comes_up_late_is_not_paid_for_the_wait(monkeypatch):
    monkeypatch.setattr(service, "FIRST_WAIT", 0.1)
    port, counted = unused_port(), []
    with client(f"http://127.0.0.1:{port}/", concurrency=2, images_per_request=3) as endpoint:
        asking = threading.Thread(target=lambda: endpoint.ask(some(9), counted.append))
        asking.start()
        time.sleep(0.1)
        with serving(port=port) as there:
            asking.join()
    assert there.received == 9
    assert sum(counted) == 0


def test_an_attempt_that_was_counted_and_never_left_is_given_back():
    def reply(number, images):
        there.server.socket.shutdown(socket.SHUT_RDWR)  # nobody connects any more
        return Reply(status=500, headers={"Connection": "close"})

    with serving(reply) as there:
        message, counted = mistake(there.address, retries=2)
    assert "failed, at attempt 3 of 3 too" in message
    assert counted == [4, 0, -4]
    assert there.received == 4 + sum(counted)


class Stop(Exception):  # noqa: N818
    pass


def test_a_count_that_raises_stops_everything():
    def reply(number, images):
        if number == 0:
            return Reply(status=500)
        there.ends.wait(10)

    def count(num):
        counted.append(num)
        if num > 0:
            raise Stop

    counted = []
    with (
        serving(reply) as there,
        client(there.address, concurrency=2, images_per_request=1) as endpoint,
    ):
        start = time.monotonic()
        with pytest.raises(Stop):
            endpoint.ask(some(10), count)
        assert time.monotonic() - start < 5, "what is under way is broken off"
        asked = len(there.asked)
        time.sleep(0.05)
    assert len(there.asked) == asked == 2
    assert counted == [1, -8]


def test_a_count_that_raises_is_not_called_for_others_that_wake_with_it():
    def count(num):
        counted.append(num)
        raise Stop

    counted = []
    with (
        serving(lambda number, images: Reply(status=429, headers={"Retry-After": "0.2"})) as there,
        client(there.address, concurrency=4, images_per_request=1) as endpoint,
        pytest.raises(Stop),
    ):
        endpoint.ask(some(4), count)
    assert len(there.asked) == 4
    assert counted == [1]


WRONG = {
    "<html>Sign in</html>": "<html>Sign in</html>, which is no JSON",
    "": "nothing, which is no JSON",
    b"\xff\xfe\x00": "which is no JSON",
    "[" * 100_000: "which is no JSON",
    '{"predictions": [': "which is no JSON",
    '{"predictions": [1' + "0" * 5000 + "]}": "which is no JSON",
    "[[1, 2]]": 'which has no "predictions"',
    '{"outputs": [[1, 2]]}': 'which has no "predictions"',
    '{"predictions": null}': "must be numbers",
    '{"predictions": 7}': "probabilities [2, 5] or labels [2]",
    '{"predictions": {"a": [1, 2]}}': "must be numbers",
    '{"predictions": [[0.2, 0.2, 0.2, 0.2, 0.2]]}': "probabilities [2, 5] or labels [2]",
    '{"predictions": [[0.5, 0.5], [0.5, 0.5]]}': "probabilities [2, 5] or labels [2]",
    '{"predictions": [[0.5, 0.5], [0.5]]}': "answered what is no array",
    '{"predictions": [1, 2]}': "set config.labels=hard",
    '{"predictions": [[0.2, 0.2, 0.2, 0.2, NaN], [0.2, 0.2, 0.2, 0.2, 0.2]]}': "must be finite",
    '{"predictions": [[1, 0, 0, 0, 0], [-0.2, 0.2, 0.4, 0.4, 0.2]]}': "at least 0 and sum to 1",
    '{"predictions": [[1, 0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5, 0]]}': "at least 0 and sum to 1",
    '{"predictions": [["a", "b", "c", "d", "e"], [1, 0, 0, 0, 0]]}': "must be numbers",
}


@pytest.mark.parametrize(("body", "what"), WRONG.items())
def test_what_is_not_agreed_is_refused_at_once(body, what):
    with serving(lambda i, images: Reply(body, headers={"Content-Type": "text/html"})) as there:
        message, counted = mistake(there.address, some(2))
    assert f"{there.address}: request 1 answered" in message
    assert what in message
    assert len(message) < 700
    assert len(there.asked) == 1
    assert counted == []


def test_the_message_names_the_request_and_nothing_is_sent_after_it():
    def reply(number, images):
        return Reply({"predictions": []}) if number == 4 else None

    with serving(reply) as there, client(there.address, images_per_request=2) as endpoint:
        endpoint.ask(some(4), pytest.fail)
        counted = []
        with pytest.raises(UserError, match="request 5 answered"):
            endpoint.ask(some(20), counted.append)
    assert len(there.asked) == 5
    assert counted == [-14]


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (401, "let config.victim.token_env name its variable"),
        (403, "let config.victim.token_env name its variable"),
        (404, "404, application/json: no model m"),
        (400, "400, application/json: no model m"),
        (422, "422, application/json: no model m"),
        (204, "which is no JSON"),
    ],
)
def test_what_will_not_pass_is_not_asked_again(status, what):
    with serving(lambda i, images: Reply("no model m", status)) as there:
        message, counted = mistake(there.address)
    assert f"{there.address}: request 1 answered {status}" in message
    assert what in message
    assert len(there.asked) == 1
    assert counted == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_told_and_not_followed(status):
    def reply(number, images):
        return Reply(status=status, headers={"Location": "/elsewhere"})

    with serving(reply) as there:
        message, _ = mistake(there.address)
    assert "It leads to /elsewhere and is not followed" in message
    assert [asked.path for asked in there.asked] == ["/v1/models/m:predict"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_response_that_is_too_large_is_refused(monkeypatch, packed):
    monkeypatch.setattr(service, "MOST_BYTES", 1000)
    body = b" " * 1001

    def reply(number, images):
        if packed:
            return Reply(gzip.compress(body), headers={"Content-Encoding": "gzip"})
        return Reply(body)

    with serving(reply) as there:
        message, _ = mistake(there.address)
    assert "more than 1,000 bytes" in message
    assert len(there.asked) == 1


def test_what_cannot_be_unpacked_is_refused():
    with serving(lambda i, images: Reply("x" * 99, headers={"Content-Encoding": "gzip"})) as there:
        message, _ = mistake(there.address)
    assert "request 1 answered what cannot be unpacked" in message


ECHOES = {
    "as json": lambda token: Reply(json.dumps({"you": token})),
    "as html": lambda token: Reply("x" * 190 + token),
    "refused": lambda token: Reply(token, 401),
    "as predictions": lambda token: Reply({"predictions": [token] * 4}),
    "redirect": lambda token: Reply("", 302, {"Location": f"/?{token}"}),
    "failure": lambda token: Reply(token, 500),
    "later": lambda token: Reply(token, 429, {"Retry-After": "9999"}),
}


@pytest.mark.parametrize("echo", ECHOES)
def test_the_token_is_sent_and_never_shown(monkeypatch, caplog, echo):
    monkeypatch.setenv("VICTIM_TOKEN", TOKEN)
    caplog.set_level(logging.INFO if echo == "redirect" else logging.DEBUG)  # all headers
    shown = []
    with (
        serving(lambda i, images: ECHOES[echo](TOKEN)) as there,
        client(there.address, token_env="VICTIM_TOKEN", retries=1) as endpoint,
    ):
        shown += [repr(endpoint), endpoint.name]
        with pytest.raises(UserError) as raised:
            endpoint.ask(some(4), lambda num: None)
        error = raised.value
        while error:
            shown += [str(error), repr(error)]
            error = error.__cause__ or (not error.__suppress_context__ and error.__context__)
    assert {asked.headers["Authorization"] for asked in there.asked} == {f"Bearer {TOKEN}"}
    assert caplog.text
    for text in [*shown, caplog.text]:
        assert TOKEN[:6] not in text
    if echo == "refused":
        assert "It does not take the token in VICTIM_TOKEN" in str(raised.value)


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_token_that_is_not_there_is_missed(monkeypatch, value):
    monkeypatch.delenv("VICTIM_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("VICTIM_TOKEN", value)
    with pytest.raises(UserError, match="no environment variable VICTIM_TOKEN is set"):
        Service(VictimConfig(endpoint="http://localhost/", token_env="VICTIM_TOKEN"), SOFT)


@pytest.mark.parametrize("value", ["secret with spaces", "secret\nX-More: 1", "sécret"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch, value):
    monkeypatch.setenv("VICTIM_TOKEN", value)
    with pytest.raises(UserError, match="must be ASCII without spaces") as raised:
        Service(VictimConfig(endpoint="http://localhost/", token_env="VICTIM_TOKEN"), SOFT)
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter2@localhost/",
        "https://hunter2@localhost/",
        "http://a:hunter2/@b",
        "http://localhost/predict?key=hunter2",
        "http://localhost/predict?v=1&api-key=hunter2",
        "http://localhost/predict?Access_Token=hunter2",
        "http://localhost/predict?sig=hunter2",
    ],
)
def test_a_secret_in_the_address_is_refused_and_not_shown(address):
    with pytest.raises(UserError, match="endpoint") as raised:
        Service(VictimConfig(endpoint=address), SOFT)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("query", ["version=2", "monkey=1", "design=a", "decode=png"])
def test_other_parameters_of_an_address_are_kept(query):
    Service(VictimConfig(endpoint=f"http://localhost/predict?{query}"), SOFT)


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http:///x",
        "https:8501",
        "ftp://localhost/",
        "http://localhost:99999/",
    ],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="no address of a service, such as http://localhost:8501/"):
        Service(VictimConfig(endpoint=address), SOFT)


@pytest.mark.parametrize(
    "host", ["example.org", "10.0.0.7", "localhost.example.org", "128.0.0.1", "[::2]", "0.0.0.0"]
)
def test_a_service_beyond_this_machine_needs_who_allows_it(host):
    config = VictimConfig(endpoint=f"https://{host}:1/predict", authorised_by=" ")
    with pytest.raises(UserError, match=r"beyond this machine: set config.victim.authorised_by"):
        Service(config, SOFT)
    config.authorised_by = "A. Owner, 2026-01-01"
    with contextlib.closing(Service(config, SOFT)) as endpoint:
        assert endpoint.name == config.endpoint


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "[::1]", "LOCALHOST"])
def test_a_service_on_this_machine_needs_nobody(host):
    Service(VictimConfig(endpoint=f"http://{host}:8501/predict"), SOFT).close()


def test_proxies_are_for_services_beyond_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving() as there:
        ask(there.address)
        monkeypatch.setenv("HTTP_PROXY", there.address)
        monkeypatch.delenv("http_proxy", raising=False)
        ask("http://victim.invalid/predict", authorised_by="its owner")
    assert there.asked[1].path == "http://victim.invalid/predict"


def test_a_proxy_that_cannot_be_used_is_told(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1")
    config = VictimConfig(endpoint="https://victim.invalid/", authorised_by="its owner")
    with pytest.raises(UserError, match=r"https://victim.invalid/ cannot be asked: .*gopher"):
        Service(config, SOFT)


CERTIFICATE = ROOT / "tests/data/localhost.pem"  # of 127.0.0.1, with its key; nobody trusts it


def test_certificates_are_checked(monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with serving(tls=context) as there:
        message, counted = mistake(there.address)
        assert "certificate verify failed" in message
        assert "SSL_CERT_FILE" in message
        assert counted == [-4]
        assert there.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        assert ask(there.address)[0].shape == (4, NUM_CLASSES)


INTERRUPTED = """
import signal, sys, numpy as np
from disguide_jax.options import VictimConfig
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.service import Service

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
config = VictimConfig(endpoint=sys.argv[1], images_per_request=1, concurrency=2)
try:
    Service(config, Contract(5, False)).ask(np.zeros((5, 8, 8, 1), np.uint8), print)
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("signum", "status", "said"),
    [(signal.SIGINT, 3, "-3\ninterrupted\n"), (signal.SIGTERM, -signal.SIGTERM, "")],
)
def test_an_ask_that_is_interrupted_ends(signum, status, said):
    def reply(number, images):
        there.ends.wait(20)

    with serving(reply) as there:
        command = [sys.executable, "-c", INTERRUPTED, there.address]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            while len(there.asked) < 2:
                assert process.poll() is None
                time.sleep(0.01)
            start = time.monotonic()
            process.send_signal(signum)
            output, _ = process.communicate(timeout=10)
        assert time.monotonic() - start < 5
    assert process.returncode == status
    assert output == said


def test_threads_take_turns():
    answers = {}
    with serving() as there, client(there.address, images_per_request=2) as endpoint:

        def work(i):
            answers[i] = endpoint.ask(some(6)[i:], pytest.fail)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i in range(4):
        np.testing.assert_allclose(answers[i], probabilities(some(6)[i:]), rtol=1e-6)


def test_closing_twice_is_closing():
    with serving() as there, client(there.address) as endpoint:
        endpoint.ask(some(1), pytest.fail)
        endpoint.close()
