"""The log of a job that is started again holds what its earlier starts said: that is what one looks for after a failure.

Snakemake removes a job's log before it starts the job again. A second link to the file, kept with the job's checkpoints, survives that.
"""

import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path


def carry_on(log: Path, kept: Path) -> None:
    """Write what earlier starts left at `kept` to this process's output, which `log` is, and keep a link to `log` there instead.

    Where the file system has no links the log holds this start only.
    """
    if kept.exists() and not os.path.samefile(kept, log):
        with open(1, "wb", closefd=False) as output:
            with open(kept, "rb") as earlier:
                shutil.copyfileobj(earlier, output)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            output.write(f"\n===== started again at {started} =====\n".encode())
    temporary = kept.with_name(f".{kept.name}.tmp")
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        os.link(log, temporary)
        os.replace(temporary, kept)
