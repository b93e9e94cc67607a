"""Keep the log of earlier attempts when a job is started again: that is what one looks for after a failure.

Snakemake removes a job's log before it starts the job again. A second hard link to the file, among the job's checkpoints, survives that.
"""

import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path


def carry_on(log: Path, kept: Path) -> None:
    """Copy the earlier log at `kept` to this process's standard output, which goes to `log`, and link `kept` to `log` for the next start.

    On a file system without hard links the log holds this start only.
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
