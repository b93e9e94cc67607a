"""The time left, against a brute-force schedule of the same jobs."""

import heapq
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtkv.ops.status.evidence import Progress
from mtkv.ops.status.jobs import Job
from mtkv.ops.status.remaining_time import durations, estimate, remaining
from mtkv.ops.status.screen import duration
from mtkv.ops.status.states import Status
from mtkv.provenance.files import write_json


def status(rule, state, seconds=None, folder=None, number=0, **more):
    card = f"{rule}-{number}.json"
    if seconds is not None:
        write_json(folder / card, {"wall_seconds": seconds})
    return Status(Job(rule, rule, (f"{rule}-{number}",), "log", card), state, **more)


def progress(done, total, rate):
    return Progress(done, total, "steps", rate, datetime.now())


def test_means_are_of_finished_jobs_of_the_rule(tmp_path):
    done = [status("train", "done", 10, tmp_path, 0), status("train", "done", 30, tmp_path, 1)]
    other = [status("predict", "done", 5, tmp_path, 0), status("train", "running", 999, tmp_path, 2)]
    assert durations(tmp_path, [*done, *other], {"train"}) == {"train": 20.0}
    (tmp_path / "train-1.json").write_text("{")
    assert durations(tmp_path, [*done, *other], {"train"}) == {"train": 10.0}


def test_what_a_job_still_takes():
    means = {"train": 100.0}
    assert remaining(status("train", "running", progress=progress(30, 80, 2.0)), means) == 25.0
    assert remaining(status("train", "stopped", progress=progress(20, 80, 2.0)), means) == 75.0
    assert remaining(status("train", "running", elapsed=60.0), means) == 40.0
    assert remaining(status("train", "running", elapsed=160.0), means) == 0.0
    assert remaining(status("train", "waiting"), means) == 100.0
    assert remaining(status("map", "waiting"), means) is None


def greedy(jobs, slots):
    """Seconds of list scheduling when every job of a rule waits for nothing."""
    free = [0.0] * slots
    for seconds in sorted(jobs, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 4))
def test_one_rule_takes_no_less_than_estimated_and_less_than_twice_that(tmp_path_factory, rates, slots):
    waiting = [
        status("train", "running", number=i, progress=progress(0, seconds, 1.0)) for i, seconds in enumerate(rates)
    ]
    found = estimate(tmp_path_factory.getbasetemp(), waiting, at_once=slots)
    best = greedy(map(float, rates), slots)
    assert found.seconds <= best + 1e-9 <= 2 * found.seconds + 1e-9


def test_stages_follow_one_another(tmp_path):
    finished = [status("train", "done", 60, tmp_path, 9), status("predict", "done", 7, tmp_path, 9)]
    left = [status("train", "waiting", number=1), status("predict", "waiting", number=1), status("map", "waiting")]
    found = estimate(tmp_path, [*finished, *left], at_once=8)
    assert (found.seconds, found.unknown) == (67.0, ("map",))
    assert estimate(tmp_path, [*finished, *left]).at_once == 1
    assert estimate(tmp_path, finished).seconds == 0.0
    assert estimate(tmp_path, left[2:]).seconds is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"), (90061, "1 d 1 h")],
)
def test_durations_as_people_say_them(seconds, text):
    assert duration(seconds) == text
