"""USR1 is noted, not obeyed, while a stage can save; afterwards everything is as it was."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from mtkv.checkpointing.preemption import SAVED, Preemption, SavedExit


def test_the_signal_is_noted_and_the_handler_put_back():
    before = signal.getsignal(signal.SIGUSR1)
    with Preemption() as outer, Preemption() as inner:
        assert not inner.asked
        os.kill(os.getpid(), signal.SIGUSR1)
        assert inner.asked
        assert outer.asked
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_thread_gets_no_handler_and_does_no_harm():
    before = signal.getsignal(signal.SIGUSR1)
    seen = []

    def work():
        with Preemption() as preemption:
            seen.append((preemption.asked, signal.getsignal(signal.SIGUSR1)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_leaving_says_so_even_where_stderr_is_redirected_and_has_its_own_exit_code(capfd):
    with pytest.raises(SavedExit) as caught:
        Preemption().leave("3 rows")
    assert caught.value.code == SAVED == os.EX_TEMPFAIL
    program = """
import contextlib, io, os, signal
from mtkv.checkpointing.preemption import Preemption
with Preemption() as preemption, contextlib.redirect_stderr(io.StringIO()):
    os.kill(os.getpid(), signal.SIGUSR1)
    if preemption.asked:
        try:
            preemption.leave("3 rows")
        except Exception:
            pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == SAVED
    assert "SIGUSR1: 3 rows saved; exit code 75" in done.stderr
