"""Whatever shell, streams, home and signals a program is given: one line and one status."""

import errno
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from disguide_jax import paths
from disguide_jax.core import backend
from disguide_jax.errors import Stopped, UserError, disk_errors, exit_status
from disguide_jax.run import session, signals
from disguide_jax.study import launch, results
from disguide_jax.study.results import Cell

SMOKE = f"--config={ROOT / 'configs/digits_hard.py'}:smoke"
MAIN = [sys.executable, "-m", "disguide_jax.main"]
SLOW = """
import time
try:
    print("ready", flush=True)
    time.sleep(60)
except BaseException:  # as C code may
    import traceback
    traceback.print_exc()
"""
WITHOUT_JAX = {  # as a program of ours that takes no time to start
    "waits": "import time; print('ready', flush=True); time.sleep(60)",
    "says": "import sys; print('±', '\\udcff'); print('±', file=sys.stderr)",
    "says much": "for i in range(10**5): print(i)",
    "imports": "import slow",
    "loses it": """
class Last:
    def __del__(self):
        print('ready', flush=True)
        time.sleep(60)
import time
Last()
time.sleep(60)""",
}


def script(tmp_path: pathlib.Path, body: str) -> list[str]:
    """A program of which `body` is what it does."""
    path = tmp_path / "program.py"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text(
        "import sys\nfrom disguide_jax.errors import UserError, exit_status\n"
        f"def main():\n{lines}sys.exit(exit_status(main))\n"
    )
    (tmp_path / "slow.py").write_text(SLOW)
    return [sys.executable, str(path)]


def run(command, *, shell: str = "{}", **environment: str) -> subprocess.CompletedProcess:
    """What a command line does, within a line of a shell."""
    return subprocess.run(
        ["bash", "-c", shell.format(shlex.join(map(str, command)))],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )


@pytest.mark.parametrize("name", ["waits", "imports", "loses it"])
def test_ctrl_c_is_one_line_and_130_wherever_it_comes(tmp_path, name):
    command = script(tmp_path, WITHOUT_JAX[name])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def test_an_error_that_ctrl_c_became_is_no_traceback(capsys):
    def main():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("numpy does so") from error

    assert exit_status(main) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("shell", "out", "err"),
    [
        ("{}", "± \\udcff\n", "±\n"),
        ("PYTHONIOENCODING=ascii:strict {}", "\\xb1 \\udcff\n", "\\xb1\n"),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {}", "\\xb1 \\udcff\n", "\\xb1\n"),
        ("{} 2>&-", "± \\udcff\n", ""),
        ("{} >&-", "", "±\n"),
        ("{} <&- >&- 2>&-", "", ""),
        ("{} >/dev/full", "", "±\n"),
        ("set -o pipefail; {} 2>/dev/null | true", "", ""),
    ],
)
def test_what_is_said_never_fails(tmp_path, shell, out, err):
    done = run(script(tmp_path, WITHOUT_JAX["says"]), shell=shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, out, err)


def test_who_reads_no_further_ends_nothing(tmp_path):
    done = run(script(tmp_path, WITHOUT_JAX["says much"]), shell="set -o pipefail; {} | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_no_file_gets_the_number_of_a_stream_that_is_closed(tmp_path):
    body = f"file = open({str(tmp_path / 'file')!r}, 'w'); raise UserError(str(file.fileno()))"
    assert run(script(tmp_path, body), shell="{} <&- >&-").stderr == "error: 3\n"
    run(script(tmp_path, body), shell="{} 2>&-")
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("what, where"), "what, where"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", b"/a/b"), "/a/b: No such file"),
    ],
)
def test_a_mistake_is_one_line_and_2(capsys, error, said):
    def main():
        raise error

    assert exit_status(main) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EINVAL, "a bug")])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error), match="a bug"):
        exit_status(main)


def test_who_was_stopped_is_told_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["a", "--workdir=my runs/it's"])

    def main():
        raise Stopped(signal.SIGHUP, "8 queries")

    assert exit_status(main) == 129
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line) == ["python", "-m", __name__, "--workdir=my runs/it's"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [*MAIN, SMOKE, "--workdir=w"],
        [sys.executable, ROOT / "scripts/bench.py", "--suite=replay", "--json=found.json"],
        [
            *(sys.executable, ROOT / "scripts/evaluate_victim.py", "--dataset=digits"),
            "--weights=embedded:digits-lenet5.safetensors",
        ],
    ],
)
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_backend_that_is_absent_is_one_line(tmp_path, monkeypatch, command, platform):
    monkeypatch.chdir(tmp_path)
    done = run(command, JAX_PLATFORMS=platform)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: JAX finds no device: JAX_PLATFORMS is '{platform}'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "environment"),
    [
        ("{}", {"MPLBACKEND": "nonsense"}),
        ("{}", {"MPLBACKEND": "module://absent", "HOME": "/nowhere", "XDG_CACHE_HOME": ""}),
        ("{} 2>&1 | head -1", {}),
        ("{} <&- >&- 2>&-", {"PYTHONIOENCODING": "ascii"}),
    ],
)
def test_a_run_ends_well_whatever_it_inherits(tmp_path, shell, environment):
    workdir = tmp_path / "ein Lauf, größer"
    command = [*MAIN, SMOKE, f"--workdir={workdir}"]
    done = run(command, shell=f"set -o pipefail; {shell}", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (workdir / "summary.json").exists()


def test_programs_say_what_is_wrong_before_they_import_what_takes_seconds():
    begins = (
        "import sys, disguide_jax.main, disguide_jax.cli, disguide_jax.study.suites; "
        "assert not {'jax', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", begins], check=True)
    for path in (ROOT / "scripts").glob("*.py"):
        if path.stem != "sklearn_victim":  # a victim, no program
            code = f"import runpy, sys; runpy.run_path({str(path)!r}); {begins.split('; ')[1]}"
            subprocess.run([sys.executable, "-c", code], check=True)


# --- Signals ------------------------------------------------------------------


def test_a_terminal_that_goes_away_stops_a_run_once_however_often_it_says_so(capsys):
    with signals.stop_requests() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
    assert stop == [signal.SIGHUP]


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop == []
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_child_is_asked_to_stop_once_and_waited_for(tmp_path):
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: exit(7))\n"
        f"open({str(tmp_path / 'ready')!r}, 'w')\ntime.sleep(60)"
    )
    stop: list[int] = []

    class WhenReady(list):
        def __bool__(self):
            return (tmp_path / "ready").exists()

        def __getitem__(self, index):
            return signal.SIGTERM

    assert signals.run_child([sys.executable, "-c", code], WhenReady()) == 7
    assert signals.run_child([sys.executable, "-c", "exit(3)"], stop) == 3


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs of a study that do as a program of one line says; returns what failed."""
    cells = [Cell("digits", "digits_soft"), Cell("digits", "digits_hard")]

    def run(code: str, jobs: int = 1):
        monkeypatch.setattr(results, "_command", lambda *_: (sys.executable, "-c", code))
        folders = {"results": tmp_path / "results", "workdirs": tmp_path / "w"}
        launcher = launch.local(jobs)
        results.run_missing(cells, [0], least_hours=lambda _: 0.0, launcher=launcher, **folders)

    return run


def test_a_study_that_is_stopped_passes_it_on_and_starts_no_more(study, tmp_path):
    code = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
        "print('began', flush=True); os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    )
    began = time.monotonic()
    with pytest.raises(Stopped) as stopped:
        study(code)
    assert stopped.value.signum == signal.SIGTERM
    assert time.monotonic() - began < 30
    outputs = [path.read_text() for path in tmp_path.rglob("output.txt")]
    assert outputs == ["began\n"]


@pytest.mark.parametrize(
    ("jobs", "user", "fraction"),
    [
        (1, {}, "None"),
        (2, {}, "0.450"),
        (3, {}, "0.300"),
        (2, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2"}, "0.2"),
        (2, {"XLA_CLIENT_MEM_FRACTION": "0.2"}, "None"),
        (2, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, "None"),
    ],
)
def test_runs_beside_each_other_share_the_memory_of_a_gpu(
    study, tmp_path, monkeypatch, jobs, user, fraction
):
    for name in backend.OF_MEMORY:
        monkeypatch.delenv(name, raising=False)
    for name, value in user.items():
        monkeypatch.setenv(name, value)
    code = "import os; exit(str(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION')))"
    with pytest.raises(UserError, match=rf"seed 0: status 1: {fraction}\n"):
        study(code, jobs=jobs)


def test_no_jobs_are_refused(study):
    with pytest.raises(UserError, match="--jobs is 0; it must be at least 1"):
        study("", jobs=0)


# --- Disks and paths ----------------------------------------------------------


WORKDIR = pathlib.Path("w")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system", "w/log"),
        PermissionError(errno.EACCES, "Permission denied", "w/log"),
        FileNotFoundError(errno.ENOENT, "No such file", "w/checkpoints/1"),
    ],
)
def test_what_the_disk_refuses_is_the_disks(error):
    with (
        pytest.raises(UserError, match=r"^w.*: cannot be written: "),
        disk_errors(WORKDIR),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        TimeoutError("timed out"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        ChildProcessError(errno.ECHILD, "No child processes"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        FileNotFoundError(errno.ENOENT, "No such file", "data/digits.npz"),
    ],
)
def test_what_is_not_of_the_disk_is_not_said_to_be(error):
    with pytest.raises(type(error)), disk_errors(WORKDIR):
        raise error


def test_a_tilde_is_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights").touch()
    assert paths.readable("~/weights") == tmp_path / "weights"
    assert paths.expanded("a/~b") == pathlib.Path("a/~b")
    with pytest.raises(UserError, match="~nobody-here/x: it begins with ~, but there is no such"):
        paths.expanded("~nobody-here/x")


def test_what_is_no_file_is_said_to_be_absent_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"no file absent \(looked for {tmp_path}/absent\)"):
        paths.readable("absent")
    for function in (paths.readable, paths.writable):
        with pytest.raises(UserError, match="folder is a folder; name a file"):
            function("folder")
    with pytest.raises(UserError, match=f"--workdir: .* {tmp_path}/file is a file"):
        session.make_folder(pathlib.Path("file/w"), "--workdir")


def test_a_workdir_that_checkpoints_cannot_be_kept_in_is_refused_before_it_is_made(tmp_path):
    workdir = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8"), session.opened(workdir):
        pass
    assert list(tmp_path.iterdir()) == []
