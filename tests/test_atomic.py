"""Files are whole or not there: after errors, and with several writers."""

import os
import threading

import pytest

from disguide_jax.files import atomic


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("mode", "content"), [("w", "new\n"), ("wb", b"new\n")])
def test_the_new_content_is_on_the_disk_before_it_gets_the_name(
    tmp_path, monkeypatch, mode, content, shared
):
    path, synced, fsync = tmp_path / "file", [], os.fsync
    path.write_text("old")

    def watch(descriptor):
        fsync(descriptor)
        synced.append((path.read_text(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", watch)
    with atomic.replacing(path, mode, shared=shared) as file:
        file.write(content)
    assert synced == [("old", len(content))]
    assert path.read_text() == "new\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic.replacing(path) as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    (tmp_path / ".file.part").write_bytes(b"a longer half of a file")
    with atomic.replacing(tmp_path / "file") as file:
        file.write(b"whole")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


def test_several_writers_of_a_shared_file_do_not_mix(tmp_path):
    path, both_open = tmp_path / "file", threading.Barrier(2)

    def write(letter):
        with atomic.replacing(path, shared=True) as file:
            both_open.wait()
            file.write(letter * 100_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"a" * 100_000, b"b" * 100_000)
    assert list(tmp_path.iterdir()) == [path]
