"""Processes of a training that are forks of this one: what `python -m mtkv.stages.train_worker` does, without importing torch each time."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from mtkv.stages import train_worker as worker


class Forked:
    """As much of `subprocess.Popen` as `mtkv.training.launcher` uses. `words`: the file that the process prints to."""

    def __init__(self, command: list[str], environment: Mapping[str, str], words: Path) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            file = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # pytest has others
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(environment)
            AcceleratorState._reset_state(reset_partial_state=True)  # this process may have trained before
            GradientState._reset_state()
            worker.work(Path(command[-1]))
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
