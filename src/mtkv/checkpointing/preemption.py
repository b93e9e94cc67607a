"""Leave before SLURM's time limit: it sends USR1 shortly before, the stage saves its state and exits with a code of its own."""

import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn, Self

SAVED = 75  # EX_TEMPFAIL of sysexits.h: saved, run me again


class SavedExit(SystemExit):
    """The stage saved its state and ends before it is done; exit code 75."""

    def __init__(self) -> None:
        super().__init__(SAVED)


class Preemption:
    """Context manager: inside, USR1 sets `asked` instead of ending the process.

    A stage looks at `asked` wherever it can save. Python delivers signals to the main thread only: entered in another thread, `asked` is
    never set. May be nested: the inner one passes the signal on to the outer. Not `wanted` (a stage that saves nothing), it does nothing.
    """

    def __init__(self, number: int = signal.SIGUSR1, wanted: bool = True) -> None:
        self.asked = False
        self._number, self._wanted = number, wanted

    def __enter__(self) -> Self:
        self._listens = self._wanted and threading.current_thread() is threading.main_thread()
        self._before: Any = signal.signal(self._number, self._note) if self._listens else None
        return self

    def __exit__(self, *error: object) -> None:
        if self._listens:
            signal.signal(self._number, self._before if self._before is not None else signal.SIG_DFL)

    def leave(self, what: str) -> NoReturn:
        """Write to the log that `what` (say, "step 200") is saved, and end the process with code 75 (raises SavedExit)."""
        # The stage may have redirected `sys.stderr`; the log is where the process's own goes.
        print(
            f"{signal.Signals(self._number).name}: {what} saved; exit code {SAVED}: run the job again, it goes on from there",
            file=sys.__stderr__,
            flush=True,
        )
        raise SavedExit

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if callable(self._before):
            self._before(number, frame)
