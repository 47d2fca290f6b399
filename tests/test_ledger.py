"""The ledger against kills, damage and a plain model of what was sent."""

import contextlib
import logging
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disguide_jax.errors import UserError
from disguide_jax.files import atomic
from disguide_jax.files.ledger import FIDELITY, TEST, TRAINING, Format, Ledger, Spent
from disguide_jax.victims.paid import Paid

FORMAT = Format((4, 4, 1), (3,), "float32")


def images(seed, num=2):
    return np.random.default_rng(seed).integers(0, 256, (num, 4, 4, 1), np.uint8)


def probs(images):
    answers = images.reshape(len(images), -1)[:, :3].astype(np.float32) + 1
    return answers / answers.sum(axis=1, keepdims=True)


class Endpoint:
    """Counts what it gets, and fails when it is told to."""

    name = "test"

    def __init__(self):
        self.received, self.failing = [], False

    def ask(self, images, count):
        self.received += list(images)
        if self.failing:
            raise UserError("down")
        return probs(images)

    def close(self):
        pass


def make_paid(ledger, endpoint, budget=100):
    return Paid(endpoint, ledger, budget=budget, check_stop=lambda: None)


def fill(folder, num=3):
    """Positions 0, 2, 4, ... of two images, all answered."""
    with Ledger(folder, FORMAT) as ledger:
        paid = make_paid(ledger, Endpoint())
        for i in range(num):
            paid.ask(TRAINING, 2 * i, images(i))
    return folder / "queries.bin"


def test_what_was_answered_is_there_after_opening_again_and_costs_nothing(tmp_path):
    fill(tmp_path)
    endpoint = Endpoint()
    with Ledger(tmp_path, FORMAT) as ledger:
        sent, answers = make_paid(ledger, endpoint).ask(TRAINING, 2, images(99))
        np.testing.assert_array_equal(sent, images(1))  # those that were paid for
        np.testing.assert_array_equal(answers, probs(images(1)))
        assert ledger.received[TRAINING] == 6
        assert ledger.answered_up_to(TRAINING) == 6
        assert [len(batch) for _, batch, _ in ledger.answered(TRAINING)] == [2, 2, 2]
    assert endpoint.received == []


def test_what_was_under_way_is_sent_once_more_to_the_bit_and_counted_twice(tmp_path):
    fill(tmp_path)
    endpoint = Endpoint()
    endpoint.failing = True
    with Ledger(tmp_path, FORMAT) as ledger, pytest.raises(UserError, match="down"):
        make_paid(ledger, endpoint).ask(TRAINING, 6, images(7))
    endpoint.failing = False
    with Ledger(tmp_path, FORMAT) as ledger:
        assert ledger.answers(TRAINING, 6) is None
        assert ledger.answered_up_to(TRAINING) == 6
        paid = make_paid(ledger, endpoint)
        assert paid.payable(0) == 98  # two are under way
        sent, _ = paid.ask(TRAINING, 6, images(8))
        np.testing.assert_array_equal(sent, images(7))
        assert paid.received == 10
        assert paid.payable(0) == 98  # two were sent twice
    np.testing.assert_array_equal(endpoint.received, [*images(7), *images(7)])


def test_the_budget_is_never_exceeded_and_test_images_are_no_part_of_it(tmp_path):
    endpoint = Endpoint()
    with Ledger(tmp_path, FORMAT) as ledger:
        paid = make_paid(ledger, endpoint, budget=5)
        paid.ask(FIDELITY, 0, images(0))
        paid.ask(TEST, 0, images(1))
        paid.ask(TRAINING, 0, images(2))
        with pytest.raises(Spent):
            paid.ask(TRAINING, 2, images(3))
        paid.ask(TEST, 2, images(4))
        assert (paid.received, paid.received_for_tests) == (4, 4)
        assert paid.counts == [2, 2, 4, 0]
    assert len(endpoint.received) == 8


def test_a_resend_that_the_budget_does_not_pay_for_stops_before_it_is_sent(tmp_path):
    class Retrying(Endpoint):
        def ask(self, images, count):
            count(len(images))
            return super().ask(images, count)

    endpoint = Retrying()
    with Ledger(tmp_path, FORMAT) as ledger:
        paid = make_paid(ledger, endpoint, budget=7)
        paid.ask(TRAINING, 0, images(0))  # 4
        with pytest.raises(Spent):
            paid.ask(TRAINING, 2, images(1))  # 6, then 8
        assert paid.received == 6
        assert paid.payable(0) == 7 - 4
    assert len(endpoint.received) == 2


def test_images_that_never_left_are_taken_back(tmp_path):
    with Ledger(tmp_path, FORMAT) as ledger:
        ledger.send(TRAINING, 0, images(0))
        ledger.send_again(TRAINING, -2)
        assert ledger.received[TRAINING] == 0
    with Ledger(tmp_path, FORMAT) as ledger:
        assert ledger.received[TRAINING] == 0
        assert ledger.images(TRAINING, 0) is not None


@pytest.mark.parametrize("cut", [1, 30, 60, 100])
def test_a_file_that_ends_within_a_record_is_used_up_to_there(tmp_path, caplog, cut):
    path = fill(tmp_path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - cut)
    with caplog.at_level(logging.WARNING), Ledger(tmp_path, FORMAT) as ledger:
        assert ledger.answered_up_to(TRAINING) == 4
        make_paid(ledger, Endpoint()).ask(TRAINING, 4, images(2))
    assert f"of {size - cut:,} is cut" in caplog.text
    with Ledger(tmp_path, FORMAT) as ledger:
        assert ledger.answered_up_to(TRAINING) == 6


def test_a_flipped_byte_anywhere_is_named_and_what_is_before_it_is_used(tmp_path, caplog):
    path = fill(tmp_path / "whole")
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        folder = tmp_path / str(at)
        folder.mkdir()
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        (folder / "queries.bin").write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING), Ledger(folder, FORMAT) as ledger:
            paid = make_paid(ledger, Endpoint())
            assert ledger.answered_up_to(TRAINING) < 6
            assert paid.received >= 4  # later headers tell, but the last one's
            for _, batch, answers in ledger.answered(TRAINING):
                np.testing.assert_array_equal(answers, probs(batch))
        assert "queries.bin: the record at byte" in caplog.text
        assert list(folder.glob("damaged-*.bin"))


def test_a_checkpoint_that_knows_more_raises_the_count(tmp_path):
    with Ledger(tmp_path, FORMAT) as ledger:
        ledger.expect(TRAINING, 64)
        ledger.expect(TRAINING, 32)
        assert ledger.received[TRAINING] == 64
    with Ledger(tmp_path, FORMAT) as ledger:
        assert ledger.received[TRAINING] == 64


def test_another_format_is_refused_with_both(tmp_path):
    fill(tmp_path)
    with pytest.raises(UserError, match=r"\(4, 4, 1\).*\(8, 8, 1\)"):
        Ledger(tmp_path, Format((8, 8, 1), (3,), "float32"))


def test_images_are_on_the_disk_before_they_are_sent_and_answers_before_they_return(
    tmp_path, monkeypatch
):
    events = []
    flush = atomic.flush
    monkeypatch.setattr(atomic, "flush", lambda file: (events.append("disk"), flush(file)))

    class Watched(Endpoint):
        def ask(self, images, count):
            events.append("sent")
            return super().ask(images, count)

    with Ledger(tmp_path, FORMAT) as ledger:
        events.clear()
        make_paid(ledger, Watched()).ask(TRAINING, 0, images(0))
    assert events == ["disk", "sent", "disk"]


def test_a_full_disk_leaves_whole_records_only(tmp_path, monkeypatch):
    path = fill(tmp_path)
    size = path.stat().st_size
    with Ledger(tmp_path, FORMAT) as ledger:
        endpoint = Endpoint()

        def full(file):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(atomic, "flush", full)
        with pytest.raises(OSError, match="No space"):
            make_paid(ledger, endpoint).ask(TRAINING, 6, images(3))
    assert endpoint.received == []
    assert path.stat().st_size == size


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=20))
def test_counts_agree_with_who_receives_however_often_it_fails_and_is_opened_again(
    tmp_path_factory, steps
):
    folder = tmp_path_factory.mktemp("ledger")
    endpoint = Endpoint()
    ledger = Ledger(folder, FORMAT)
    for position, failing, opened_again in steps:
        endpoint.failing = failing
        with contextlib.suppress(UserError, Spent):
            make_paid(ledger, endpoint, budget=12).ask(TRAINING, 2 * position, images(position))
        if opened_again:
            with ledger:
                pass
            ledger = Ledger(folder, FORMAT)
        assert ledger.received[TRAINING] == len(endpoint.received) <= 12
    with ledger:
        for _, batch, answers in ledger.answered(TRAINING):
            np.testing.assert_array_equal(answers, probs(batch))


def killed_while_writing(folder, monkeypatch, flushes):
    """Asks once more, and is killed in so many-th flush: nothing was sent or all was."""
    done = []

    class Killed(BaseException):
        pass

    def flush(file):
        done.append(file)
        if len(done) == flushes:
            raise Killed

    endpoint = Endpoint()
    with monkeypatch.context() as patch, Ledger(folder, FORMAT) as ledger:
        patch.setattr(atomic, "flush", flush)
        paid = make_paid(ledger, endpoint)
        with pytest.raises(Killed):
            paid.ask(TRAINING, 6, images(3))
    return len(endpoint.received)


@pytest.mark.parametrize("flushes", [1, 2])
def test_after_a_kill_before_or_after_sending_the_count_is_what_was_received(
    tmp_path, monkeypatch, flushes
):
    fill(tmp_path)
    received = killed_while_writing(tmp_path, monkeypatch, flushes)
    assert received == (0 if flushes == 1 else 2)
    with Ledger(tmp_path, FORMAT) as ledger:
        assert ledger.received[TRAINING] == 6 + received
    endpoint = Endpoint()
    with Ledger(tmp_path, FORMAT) as ledger:  # opened twice, taken back once
        make_paid(ledger, endpoint).ask(TRAINING, 6, images(9))
        # An answer that was written but not yet on the disk counts as well.
        assert ledger.received[TRAINING] == 6 + received + len(endpoint.received)


def test_after_the_power_failed_what_may_have_been_sent_counts_as_sent(tmp_path, monkeypatch):
    fill(tmp_path)
    killed_while_writing(tmp_path, monkeypatch, 1)
    monkeypatch.setattr("disguide_jax.files.ledger._boot", lambda: 7)
    with Ledger(tmp_path, FORMAT) as ledger:
        assert ledger.received[TRAINING] == 8
    fill(tmp_path / "unknown", num=0)
    monkeypatch.setattr("disguide_jax.files.ledger._boot", lambda: 0)  # where nobody can tell
    killed_while_writing(tmp_path / "unknown", monkeypatch, 1)
    with Ledger(tmp_path / "unknown", FORMAT) as ledger:
        assert ledger.received[TRAINING] == 2


def test_a_record_holds_what_its_table_says(tmp_path):
    data = fill(tmp_path, num=1).read_bytes()
    records, at = [], 0
    while at < len(data):
        magic, *fields, num_bytes, _ = struct.unpack_from("<4sBBiQQIQI", data, at)
        assert magic == b"DGL2"
        records.append((*fields[:5], num_bytes))
        at += struct.calcsize("<4sBBiQQIQI") + 4 + num_bytes
    opened, *others = records
    assert opened[:5] == (0, 0, 0, 0, 0)
    # kind, account, N, position, received, bytes: SENT, LEFT, ANSWERS
    assert others == [(1, 0, 2, 0, 2, 32), (4, 0, 2, 0, 2, 0), (3, 0, 2, 0, 2, 24)]
