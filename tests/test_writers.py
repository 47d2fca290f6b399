"""The log, and its copy for TensorBoard."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from disguide_jax.errors import UserError
from disguide_jax.run import recorder


def events(folder):
    """All events in all files of TensorBoard's, oldest first."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("Q", content[:8])
            yield Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]


def test_a_restart_writes_later_lines_anew_and_lets_tensorboard_hide_those_before(tmp_path):
    log = recorder.MetricsLog(tmp_path, num_bytes=0, step=0)
    log.write(10, {"a/b": 1.0, "shares": [0.25, 0.75], "stage": "gan"})
    kept = log.sync()
    log.write(20, {"a/b": 2.0})
    log.close()
    log = recorder.MetricsLog(tmp_path, num_bytes=kept, step=10)
    log.write(20, {"a/b": 3.0})
    log.close()

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["queries"], line["a/b"]) for line in lines] == [(10, 1.0), (20, 3.0)]
    found = list(events(tmp_path / "tb"))
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert scalars == [
        (10, "a/b", 1.0),
        (10, "shares_0", 0.25),
        (10, "shares_1", 0.75),
        (20, "a/b", 2.0),
        (20, "a/b", 3.0),
    ]
    assert {e.file_version for e in found if e.file_version} == {"brain.Event:2"}
    starts = [e.step for e in found if e.session_log.status == SessionLog.START]
    assert starts == [1, 11], "TensorBoard hides what was written from that step on"


@pytest.mark.parametrize("left", [None, 5])
def test_a_log_shorter_than_its_checkpoint_says_is_refused_and_not_filled_up(tmp_path, left):
    path = tmp_path / "metrics.jsonl"
    if left:
        path.write_bytes(b"x" * left)
    with pytest.raises(UserError, match=f"metrics.jsonl has {left or 0} bytes, but 100"):
        recorder.MetricsLog(tmp_path, num_bytes=100, step=0)
    assert path.exists() == bool(left)
    if left:
        assert path.read_bytes() == b"x" * left
