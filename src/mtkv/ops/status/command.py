"""`mtkv status`: how far a study is, once or again and again."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mtkv.ops.status.look import as_json, look
from mtkv.ops.status.screen import render
from mtkv.provenance.files import write_json

if TYPE_CHECKING:
    from mtkv.config.study import Study


def print_status(study: "Study", *, at_once: int | None, output: Path | None, console: Console) -> None:
    """One look, on the console, and as JSON in `output` (`-`: on the console in place of the tables)."""
    found = look(study, at_once=at_once)
    if output == Path("-"):
        print(json.dumps(as_json(found), indent=2))
        return
    console.print(render(found))
    if output:
        write_json(output, as_json(found))


def watch_status(study: "Study", *, at_once: int | None, interval: float, console: Console) -> None:
    """A look every `interval` seconds until nothing is left to do, or until Ctrl-C."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as screen:
        try:
            while True:
                found = look(study, at_once=at_once)
                screen.update(render(found), refresh=True)
                if len(found.of("done")) == len(found.statuses):
                    return
                time.sleep(interval)
        except KeyboardInterrupt:
            return
