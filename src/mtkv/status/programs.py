"""Ask a program of this machine something, without ever waiting long for it."""

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a program printed. `code` None: it did not end in time, and was ended."""

    code: int | None
    text: str
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether it ended well."""
        return self.code == 0


def ask(*command: str, timeout: float = 5) -> Answer | None:
    """The answer of a program; None where there is no such program. After `timeout` seconds it is ended with all it started."""
    if shutil.which(command[0]) is None:
        return None
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        )
    except OSError as refused:
        return Answer(127, "", str(refused))
    try:
        text, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Answer(None, "")
    return Answer(process.returncode, text, error)
