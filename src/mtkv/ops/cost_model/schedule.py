"""How long jobs take together: the longest chain of dependent jobs, and all of them on a limited number of slots."""

import heapq
from collections.abc import Mapping, Sequence

from mtkv.ops.planned_jobs import PlannedJob


def critical_path(jobs: Sequence[PlannedJob], seconds: Mapping[int, float]) -> tuple[float, list[PlannedJob]]:
    """Seconds of the longest chain of jobs that wait for each other, and the chain, first job first. `seconds` by job number.

    No number of machines makes the study shorter than this. `jobs` come in order, inputs first; a dependency that is not among them
    costs nothing.
    """
    ends: dict[int, float] = {}
    before: dict[int, PlannedJob | None] = {}
    known = {job.number: job for job in jobs}
    for job in jobs:
        waits = max((known[n] for n in job.above if n in known), key=lambda other: ends[other.number], default=None)
        before[job.number] = waits
        ends[job.number] = seconds[job.number] + (ends[waits.number] if waits else 0.0)
    last: PlannedJob | None = max(jobs, key=lambda job: ends[job.number], default=None)
    length, chain = ends[last.number] if last else 0.0, []
    while last is not None:
        chain.append(last)
        last = before[last.number]
    return length, chain[::-1]


def makespan(
    jobs: Sequence[PlannedJob],
    seconds: Mapping[int, float],
    demands: Mapping[int, Mapping[str, int]],
    capacity: Mapping[str, int],
) -> float:
    """Seconds for all jobs when each starts as soon as its inputs and the resources it demands are free, longest chains first.

    `demands` by job number, for instance {"slots": 1, "gpu": 1}; a resource not in `capacity` is unlimited; a demand above its capacity
    is taken as the capacity. This is list scheduling (Graham, 1969): at most twice the optimum, for one kind of slot.
    """
    known = {job.number: job for job in jobs}
    below: dict[int, list[int]] = {number: [] for number in known}
    waiting = {}
    for job in jobs:
        above = [number for number in job.above if number in known]
        waiting[job.number] = len(above)
        for number in above:
            below[number].append(job.number)
    tail: dict[int, float] = {}
    for job in reversed(jobs):
        tail[job.number] = seconds[job.number] + max((tail[n] for n in below[job.number]), default=0.0)
    free = dict(capacity)
    ready = sorted((number for number, count in waiting.items() if count == 0), key=lambda number: -tail[number])
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        for number in list(ready):
            need = {name: min(amount, capacity[name]) for name, amount in demands[number].items() if name in capacity}
            if all(free[name] >= amount for name, amount in need.items()):
                ready.remove(number)
                for name, amount in need.items():
                    free[name] -= amount
                heapq.heappush(running, (now + seconds[number], number))
        now, done = heapq.heappop(running)
        for name, amount in demands[done].items():
            if name in capacity:
                free[name] += min(amount, capacity[name])
        for number in below[done]:
            waiting[number] -= 1
            if waiting[number] == 0:
                ready.append(number)
        ready.sort(key=lambda number: -tail[number])
    return now
