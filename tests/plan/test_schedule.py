"""The longest chain and the time on so many slots, against all chains and all orders of small random studies."""

from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtkv.ops.cost_model.estimate import critical_path, makespan
from mtkv.ops.planned_jobs import PlannedJob


def job(number, above=(), threads=1, **resources):
    return PlannedJob(number, "rule", {}, (), (), {}, threads, resources, False, tuple(above), True)


@st.composite
def studies(draw, most=6):
    """Jobs whose inputs come before them, with times in seconds."""
    count = draw(st.integers(1, most))
    above = [draw(st.sets(st.integers(0, number - 1), max_size=2)) if number else () for number in range(count)]
    times = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    return [job(number, sorted(links)) for number, links in enumerate(above)], dict(enumerate(map(float, times)))


def all_chains(jobs):
    chains = [[job] for job in jobs]
    for chain in chains:
        chains.extend([jobs[number], *chain] for number in chain[0].above)
    return chains


def played(order, jobs, seconds, slots):
    """The end when jobs start in a fixed order, each as early as its inputs and a slot allow."""
    ends, free = {}, [0.0] * slots
    for number in order:
        start = max([min(free), *(ends[above] for above in jobs[number].above)])
        slot = free.index(min(free))
        free[slot] = ends[number] = start + seconds[number]
    return max(ends.values())


def in_order(order, jobs):
    return all(order.index(above) < order.index(number) for number in order for above in jobs[number].above)


@given(studies())
def test_the_critical_path_is_the_longest_of_all_chains(study):
    jobs, seconds = study
    length, chain = critical_path(jobs, seconds)
    assert length == max(sum(seconds[job.number] for job in chain) for chain in all_chains(jobs))
    assert length == sum(seconds[job.number] for job in chain)
    assert all(before.number in after.above for before, after in pairwise(chain))


@settings(max_examples=40, deadline=None)
@given(studies(most=5), st.integers(1, 3))
def test_the_whole_is_between_the_best_order_and_twice_it(study, slots):
    jobs, seconds = study
    orders = [order for order in permutations(range(len(jobs))) if in_order(order, jobs)]
    best = min(played(order, jobs, seconds, slots) for order in orders)
    found = makespan(jobs, seconds, {job.number: {"slots": 1} for job in jobs}, {"slots": slots})
    assert best <= found <= (2 - 1 / slots) * best


@given(studies(most=12))
def test_one_slot_takes_the_sum_and_endless_slots_the_longest_chain(study):
    jobs, seconds = study
    demands = {job.number: {"slots": 1} for job in jobs}
    assert makespan(jobs, seconds, demands, {"slots": 1}) == sum(seconds.values())
    assert makespan(jobs, seconds, demands, {"slots": len(jobs)}) == critical_path(jobs, seconds)[0]


def test_jobs_wait_for_what_they_share():
    jobs = [job(number) for number in range(4)]
    seconds = dict.fromkeys(range(4), 10.0)
    demands = {number: {"slots": 1, "gpu": 1} for number in range(4)}
    assert makespan(jobs, seconds, demands, {"slots": 4, "gpu": 1}) == 40
    assert makespan(jobs, seconds, demands, {"slots": 4, "gpu": 2}) == 20
    wide = {number: {"slots": 3} for number in range(4)}
    assert makespan(jobs, seconds, wide, {"slots": 4}) == 40
    assert makespan(jobs, seconds, wide, {"slots": 2}) == pytest.approx(40)  # scaled down to what there is


def test_inputs_that_are_there_cost_nothing():
    last = job(7, above=(3,))
    assert critical_path([last], {7: 5.0}) == (5.0, [last])
    assert makespan([last], {7: 5.0}, {7: {"slots": 1}}, {"slots": 1}) == 5.0
    assert makespan([], {}, {}, {"slots": 1}) == critical_path([], {})[0] == 0


def test_the_longest_chain_goes_first():
    jobs = [job(0), job(1), job(2), job(3, above=(2,))]
    demands = {number: {"slots": 1} for number in range(4)}
    assert makespan(jobs, {0: 1.0, 1: 1.0, 2: 1.0, 3: 3.0}, demands, {"slots": 2}) == 4
