"""One writer at a time: real processes race, are killed and are paused; a lock from another machine is believed until it is silent."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mtkv.checkpointing.lock import SIZE, LockedError, WriterLock, is_running, is_stale, read_lock, this_process

# Enters the lock, says so, writes its pid into a file that only the holder may touch, and stays until its input ends.
HOLDER = """
import sys, time
from pathlib import Path
from mtkv.checkpointing.lock import LockedError, WriterLock
path, inside, interval = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
sys.stdin.readline()
try:
    with WriterLock(path, interval=interval) as lock:
        inside.touch(exist_ok=False)
        print("in", flush=True)
        sys.stdin.readline()
        inside.unlink()
        lock.check()
    print("out", flush=True)
except LockedError as error:
    print(error, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """`start()` → a process that waits for a line to ask for the lock, and for another one to leave it."""
    processes = []

    def one(interval=15.0):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, tmp_path / "lock.json", tmp_path / "inside", str(interval)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield one
    for process in processes:
        process.kill()
        process.communicate()


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def foreign(path: Path, age: float = 0.0, **facts):
    """A lock file as a writer on another machine leaves it, last renewed `age` seconds ago."""
    path.write_text(json.dumps(this_process() | {"host": "elsewhere", "token": "t", "interval": 15.0} | facts))
    os.utime(path, (time.time() - age, time.time() - age))


def test_of_many_racers_one_wins_and_the_others_say_who_has_it(start, tmp_path):
    racers = [start() for _ in range(5)]
    for racer in racers:
        go(racer)
    said = [racer.stdout.readline().strip() for racer in racers]
    (winner,) = [racer for racer, line in zip(racers, said, strict=True) if line == "in"]
    for line in set(said) - {"in"}:
        assert f"pid {winner.pid} on {os.uname().nodename}" in line
        assert f"kill {winner.pid}" in line
    go(winner)
    assert winner.stdout.readline().strip() == "out"
    assert list(tmp_path.iterdir()) == []


def test_of_many_racers_for_a_dead_writers_lock_one_wins(start, tmp_path):
    dead = start()
    go(dead)
    assert dead.stdout.readline() == "in\n"
    dead.kill()  # not waited for: a zombie
    (tmp_path / "inside").unlink()
    racers = [start() for _ in range(5)]
    for racer in racers:
        go(racer)
    said = [racer.stdout.readline().strip() for racer in racers]
    assert said.count("in") == 1, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "lock.json"]


def test_threads_take_over_a_dead_lock_one_at_a_time(tmp_path):
    """Many rounds in which all see the same dead lock at the same time."""
    inside, most, errors = [], [], []

    def ask(barrier):
        barrier.wait()
        try:
            with WriterLock(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()
        except LockedError:
            errors.append(1)

    path = tmp_path / "lock.json"
    for _ in range(40):
        foreign(path, age=100, token=os.urandom(4).hex())
        barrier = threading.Barrier(4)
        threads = [threading.Thread(target=ask, args=(barrier,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(most) == 1
    assert len(most) >= 40
    assert errors, "no race took place"
    assert list(tmp_path.iterdir()) == []


def test_a_pid_that_another_process_has_now_is_a_dead_writer(tmp_path):
    path = tmp_path / "lock.json"
    mine = this_process()
    assert is_running(mine) is True
    foreign(path, **(mine | {"process_start": mine["process_start"] - 1}))
    with WriterLock(path):
        pass
    foreign(path, **mine)
    with pytest.raises(LockedError), WriterLock(path):
        pass


def test_a_writer_elsewhere_is_waited_for_while_it_is_silent_and_refused_when_it_speaks(tmp_path):
    path = tmp_path / "lock.json"
    foreign(path, interval=0.2)
    start = time.monotonic()
    with WriterLock(path, interval=0.2):
        assert 0.6 < time.monotonic() - start < 5
    foreign(path, interval=0.5, slurm_job_id="77")
    timer = threading.Timer(0.3, foreign, (path,), {"interval": 0.5, "slurm_job_id": "77"})
    timer.start()
    with (
        pytest.raises(LockedError, match=r"SLURM job 77, pid \d+ on elsewhere.*scancel 77"),
        WriterLock(path, interval=0.5),
    ):
        pass
    timer.join()


def test_patience_waits_for_a_living_writer_to_leave(tmp_path):
    path = tmp_path / "lock.json"
    lock = WriterLock(path)
    lock.__enter__()
    timer = threading.Timer(0.4, lock.__exit__, (None, None, None))
    timer.start()
    with WriterLock(path, interval=0.2, patience=20):
        pass
    timer.join()
    with lock, pytest.raises(LockedError), WriterLock(path, interval=0.1, patience=0.2):
        pass


def test_the_heartbeat_is_renewed_in_place_and_its_size_never_changes(tmp_path):
    path = tmp_path / "lock.json"
    with WriterLock(path, interval=0.05) as lock:
        first = read_lock(path)
        time.sleep(0.3)
        second = read_lock(path)
        assert second["modified"] > first["modified"]
        assert path.stat().st_size == SIZE
        assert {"pid", "host", "slurm_job_id", "started", "heartbeat"} <= set(json.loads(path.read_text()))
        assert not is_stale(second, second["modified"] + 0.19)
        assert is_stale(second, second["modified"] + 0.21)
        lock.check()
    assert not path.exists()


def test_a_paused_holder_is_replaced_notices_and_does_not_touch_the_new_lock(start, tmp_path):
    paused = start(interval=0.1)
    go(paused)
    assert paused.stdout.readline() == "in\n"
    os.kill(paused.pid, signal.SIGSTOP)
    time.sleep(0.6)
    with WriterLock(tmp_path / "lock.json", interval=0.1) as lock:
        os.kill(paused.pid, signal.SIGCONT)
        time.sleep(0.4)  # it renews its heartbeat, in a file that has no name any more
        lock.check()
        go(paused)
        assert f"was taken over by pid {os.getpid()}" in paused.stdout.readline()
        lock.check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_lock_that_cannot_be_read_is_believed_until_it_is_old(tmp_path, text):
    path = tmp_path / "lock.json"
    path.write_text(text)
    assert read_lock(path)["running"] is None
    assert not is_stale(read_lock(path))
    os.utime(path, (0, 0))
    with WriterLock(path):
        pass
