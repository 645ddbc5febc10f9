"""What cannot be shown is dropped, and the run goes on: with no, a full, or a closed standard error or terminal."""

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

from pseudocoreset import Experts
from pseudocoreset.compute.progress import Display, progress_bar
from pseudocoreset.inference import Posterior

COMMAND = [sys.executable, "-c", "from pseudocoreset.cli import main; main()"]
NETWORK = ["--data", "digits", "--width", "2", "--depth", "1"]
FEW = ["--num-chains", "1", "--num-warmup", "2", "--num-samples", "2", "--thinning", "1"]


@contextlib.contextmanager
def piped():
    """(end to read from, text stream to write to) of a pipe of one page."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with open(writer, "w") as stream:
        yield reader, stream
    with contextlib.suppress(OSError):
        os.close(reader)


def show_a_bar() -> float:
    """Seconds that a bar takes which says more than a pipe holds."""
    began = time.perf_counter()
    with progress_bar("a bar", 100, enabled=True) as advance:
        if isinstance(sys.stderr, Display):
            sys.stderr.write("x" * 10_000)
        for _ in range(100):
            advance(1, "note")
    return time.perf_counter() - began


def test_text_arrives_in_its_order():
    with piped() as (reader, stream):
        display = Display(stream)
        for i in range(300):
            display.write(f"{i}\n")
        display.drain()
        assert os.read(reader, 4096).decode().split() == [str(i) for i in range(300)]


def test_a_pipe_that_nobody_reads_keeps_nobody_waiting(monkeypatch):
    with piped() as (_, stream):
        display = Display(stream)
        monkeypatch.setattr(sys, "stderr", display)
        assert show_a_bar() < 5
        began = time.perf_counter()
        for _ in range(2000):  # more than is kept waiting
            display.write("more")
        display.drain()  # who waited once does not wait again
        assert time.perf_counter() - began < 1


@pytest.mark.parametrize("kind", ["closed pipe", "full device", "closed stream", "none"])
def test_a_bar_that_cannot_be_shown_is_no_error(monkeypatch, kind):
    with piped() as (reader, stream), open("/dev/full", "w") as full:
        if kind == "closed pipe":
            os.close(reader)
        elif kind == "closed stream":
            stream.close()
        monkeypatch.setattr(sys, "stderr", {"full device": full, "none": None}.get(kind, stream))
        assert show_a_bar() < 5
        monkeypatch.setattr(sys, "stderr", Display(sys.stderr))
        assert show_a_bar() < 5


def run(*arguments, **streams) -> subprocess.Popen:
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **streams)


def sample_on(folder, **streams) -> int:
    """Exit code of a command that samples and logs, with these streams."""
    with run("sample", "--coreset", "digits-fbpc-1", "--out", folder, *FEW, *NETWORK, **streams) as process:
        return process.wait(timeout=120)


def test_sampling_ends_well_on_a_full_device(tmp_path):
    with open("/dev/full", "w") as full:
        assert sample_on(tmp_path / "run", stdout=full, stderr=full) == 0
    assert Posterior.load(tmp_path / "run").num_draws == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed at the other end", "full", "closed"])
def test_sampling_ends_well_whatever_standard_error_is(tmp_path, kind):
    with piped() as (reader, stream):
        if kind == "closed at the other end":
            os.close(reader)
        elif kind == "full":
            os.set_blocking(stream.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(stream.fileno(), b"x")
            os.set_blocking(stream.fileno(), True)
        streams = {"preexec_fn": lambda: os.close(2)} if kind == "closed" else {"stderr": stream}
        assert sample_on(tmp_path / "run", stdout=subprocess.DEVNULL, **streams) == 0
    assert Posterior.load(tmp_path / "run").num_draws == 2


def train(folder, epochs, **streams) -> subprocess.Popen:
    many = ["--num-experts", "1", "--num-epochs", epochs, "--learning-rate", "0.001"]
    return run("experts", "--out", folder, *many, *NETWORK, **streams)


def wait_for(condition) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it does not come")


def test_an_interrupted_command_says_that_it_goes_on(tmp_path):
    with train(tmp_path, 3000, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for((tmp_path / "group-0000" / "epoch-0001").is_dir)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Interrupted. The same command goes on where this one was stopped." in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_experts_outlive_their_terminal(tmp_path):
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, 0x540E, 0)  # TIOCSCTTY: hung up when we close our side

    with train(tmp_path, 30, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal) as process:
        os.close(theirs)
        reading = threading.Thread(target=lambda: os.read(ours, 1))  # until the first sign of life
        reading.start()
        wait_for((tmp_path / "group-0000" / "epoch-0001").is_dir)
        reading.join()
        os.close(ours)
        assert process.wait(timeout=300) == 0
    assert Experts.load(tmp_path).num_epochs == 30
