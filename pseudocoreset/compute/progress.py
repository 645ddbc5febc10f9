"""Progress bars that cost nothing when they are off, and never a run: what cannot be shown is dropped."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import queue
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from pseudocoreset.compute.processes import is_writer

__all__ = ["Display", "keep_running", "progress_bar", "standard_error"]

Advance = Callable[..., None]
MOST_WAITING = 1000  # pieces of text, before more are dropped
SECONDS_TO_DRAIN = 1.0


class Display(io.TextIOBase):
    """A stream to people: writing neither raises nor waits.

    Text goes to the file descriptor of the stream, past its buffer, so that nothing that could not be written is tried
    again when the interpreter ends. Pipes and terminals, which can keep a writer waiting, are written by a thread; what
    comes faster than they take it is dropped.

    Args:
        stream: standard error, or None where there is none.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._process = os.getpid()
        self._waiting: queue.Queue[bytes] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._descriptor: int | None = None
        self._waits = self._is_stuck = False
        with contextlib.suppress(OSError, ValueError, AttributeError):
            # A duplicate: should the number be closed, another file may get it.
            self._descriptor = os.dup(stream.fileno())
            self._waits = not stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    def write(self, text: str) -> int:
        """Pass the text on, or drop it."""
        if not isinstance(text, str):  # click asks so whether a stream takes bytes
            raise TypeError(f"text must be a str; got {type(text).__name__}")
        with contextlib.suppress(Exception):
            if self._descriptor is None:
                if self._stream is not None:
                    self._stream.write(text)
            elif not self._waits or os.getpid() != self._process:  # a forked child has no thread
                _write_all(self._descriptor, self._encoded(text))
            else:
                self._waiting.put_nowait(self._encoded(text))
                self._start()
        return len(text)

    def flush(self) -> None:
        """Nothing where a thread writes; as the stream otherwise."""
        if self._descriptor is None and self._stream is not None:
            with contextlib.suppress(Exception):
                self._stream.flush()

    def drain(self, seconds: float = SECONDS_TO_DRAIN) -> None:
        """Wait until all is written, no longer than this; not again for who did not write last time."""
        waiting = self._waiting
        if os.getpid() == self._process:
            with waiting.all_tasks_done:
                seconds = 0.0 if self._is_stuck else seconds
                self._is_stuck = not waiting.all_tasks_done.wait_for(lambda: waiting.unfinished_tasks == 0, seconds)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return bool(self._stream.isatty())
        except (OSError, ValueError, AttributeError):
            return False

    def fileno(self) -> int:
        """The descriptor of the stream."""
        if self._stream is None:
            raise io.UnsupportedOperation("there is no standard error")
        return self._stream.fileno()

    def writable(self) -> bool:
        """True."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _encoded(self, text: str) -> bytes:
        return text.encode(self.encoding, errors="replace")

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_waiting, daemon=True, name="pseudocoreset-display")
            self._thread.start()
            atexit.register(self.drain)

    def _write_waiting(self) -> None:
        assert self._descriptor is not None
        while True:
            data = self._waiting.get()
            with contextlib.suppress(OSError):
                _write_all(self._descriptor, data)
            self._waiting.task_done()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


_display = Display(None)


def standard_error() -> Display:
    """``sys.stderr`` as a ``Display``; the same one as long as it is the same stream."""
    global _display
    if isinstance(sys.stderr, Display):
        return sys.stderr
    if _display._stream is not sys.stderr:
        _display = Display(sys.stderr)
    return _display


def keep_running() -> None:
    """Make this process, a command, go on when nobody can be told: with no, a full or a closed standard error.

    It goes on when its terminal is closed, too, unless somebody else handles that signal.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which the next file would get otherwise
    sys.stderr = standard_error()
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextlib.contextmanager
def progress_bar(description: str, total: int, *, enabled: bool, completed: int = 0) -> Iterator[Advance]:
    """A rich progress bar on standard error; yields ``advance(steps, note="")``.

    Of several processes the first alone shows it.
    """
    if not (enabled and is_writer()):
        yield lambda steps, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    display = standard_error()
    try:
        with Progress(*columns, console=Console(file=cast(TextIO, display)), refresh_per_second=4) as progress:
            task = progress.add_task(f"{description:<24}", total=total, completed=completed, note="")

            def advance(steps: int, note: str = "") -> None:
                progress.update(task, advance=steps, note=note)

            yield advance
    finally:
        display.drain()  # what the caller prints next comes after the bar
