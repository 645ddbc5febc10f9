"""Progress bars that cost nothing when they are off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from pseudocoreset.meshes import is_writer

__all__ = ["progress_bar"]

Advance = Callable[..., None]


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
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
        task = progress.add_task(f"{description:<24}", total=total, completed=completed, note="")

        def advance(steps: int, note: str = "") -> None:
            progress.update(task, advance=steps, note=note)

        yield advance
