"""What happens to jobs on clusters, done to trainings on the tests' SLURM: nothing is lost, nothing trained twice.

Each fault strikes while the training of a copy of the study holds at a step in its midst. The copies run side by side.
"""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from unittest.mock import ANY

import pytest
from slurm.cluster import until
from slurm.studies import CARD, HELD_AT, HERE_IS_ALL, PATIENCE, STEPS

from mtkv.provenance.files import read_json


def gone(pid):
    """Wait until a process has ended, so that it makes no further step."""
    status = Path(f"/proc/{pid}/status")
    until(lambda: not status.exists() or "State:\tZ" in status.read_text(), 60, f"process {pid} to end")


def undisturbed(place):
    """No fault: what the others are compared with."""


def killed(place):
    """The training's process is killed, as for too much memory."""
    os.kill(place.held()[1], signal.SIGKILL)
    gone(place.held()[1])


def cancelled(place):
    """Somebody cancels the job."""
    job, process = place.held()
    place.cluster.run("scancel", job)
    gone(process)


def requeued(place):
    """SLURM takes the node for a job of higher priority."""
    job, process = place.held()
    place.cluster.scontrol("requeue", job)
    gone(process)


def out_of_time(place):
    """The time limit comes near: SLURM's next look at it, at most half a minute later, finds less than signal_seconds left."""
    place.cluster.scontrol("update", f"jobid={place.held()[0]}", "EndTime=now+80seconds")
    until(lambda: len(place.jobs("train")) == 2, PATIENCE, f"the job to save and be sent anew\n{place.told()}")


def controller_restarted(place):
    """slurmctld is away for a while."""
    place.held()
    place.cluster.stop("slurmctld")
    time.sleep(2)
    place.cluster.start_controller()
    until(place.cluster.nodes, 30, "slurmctld to answer")


def node_lost(place):
    """The node of the training goes down; it comes back later."""
    job, process = place.held()
    (node,) = {record["NodeList"] for record in place.jobs("train") if record["JobId"] == job}
    place.cluster.scontrol("update", f"nodename={node}", "state=down", "reason=test")
    gone(process)
    until(lambda: place.jobs("train")[0]["Restarts"] == "1", 120, "SLURM to start the job again")
    place.cluster.scontrol("update", f"nodename={node}", "state=resume")


def snakemake_killed(place, process):
    """The login node restarts: Snakemake is gone, its job is not; a new Snakemake sends a second one."""
    first, _ = place.held()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    place.succeeds(place.snakemake("--unlock"))
    again = place.snakemake(CARD)
    (lock,) = place.folder.glob("checkpoints/*/lock.json")
    until(
        lambda: list(lock.parent.glob(".lock.json.*.tmp")),
        PATIENCE,
        f"a second job to ask for the lock\n{place.told()}",
    )
    assert [job["JobState"] for job in place.jobs("train")] == ["RUNNING"] * 2
    assert read_json(lock)["slurm_job_id"] == first
    assert [file.name for file in place.folder.glob("holding-*")] == [f"holding-{first}"]
    return again


def on_two_nodes(study, folder):
    """No fault: one training, a process on each of two nodes, which srun starts."""
    place = study.untrained(folder, nodes=2, gpu=2, strategy="ddp")
    (folder / "sitecustomize.py").write_text(HERE_IS_ALL)
    place.succeeds(place.snakemake(CARD))
    return place


# SLURM's records of the training's jobs afterwards: state and restarts of each; steps at which it was resumed
FAULTS = {
    undisturbed: ([("COMPLETED", "0")], []),
    killed: ([("FAILED", "0"), ("COMPLETED", "0")], [HELD_AT]),
    cancelled: ([("CANCELLED", "0"), ("COMPLETED", "0")], [HELD_AT]),
    requeued: ([("COMPLETED", "1")], [HELD_AT]),
    out_of_time: ([("FAILED", "0"), ("COMPLETED", "0")], [HELD_AT + 1]),
    snakemake_killed: (
        [(ANY, "0"), ("COMPLETED", "0")],
        [STEPS],
    ),  # nobody waits for the first; the second replaces its files
    controller_restarted: ([("COMPLETED", "0")], []),
    node_lost: ([("COMPLETED", "1")], [HELD_AT]),
}
# These touch every job or want every node: one after the other, when the rest is done.
ALONE = (controller_restarted, node_lost, on_two_nodes)


def strike(place, fault):
    """Train with this fault; returns the workplace afterwards."""
    process = place.snakemake(CARD)
    if fault is snakemake_killed:
        process = fault(place, process)
    else:
        fault(place)
    place.release()
    place.succeeds(process)
    return place


@pytest.fixture(scope="module")
def struck(study, request, tmp_path_factory):
    """The workplaces by fault, of those faults that are tested now, as they come."""
    wanted = {
        item.callspec.params["fault"] for item in request.session.items if "fault" in getattr(item, "fixturenames", [])
    }
    wanted |= {undisturbed}
    folder = tmp_path_factory.mktemp("faults")

    def run(fault):
        if fault is on_two_nodes:
            return fault(study, folder / fault.__name__)
        place = study.untrained(folder / fault.__name__)
        place.hold()
        return strike(place, fault)

    with ThreadPoolExecutor(3) as many, ThreadPoolExecutor(1) as one:
        found = {fault: many.submit(run, fault) for fault in wanted.difference(ALONE)}
        first = list(found.values())

        def run_alone(fault):
            wait(first)
            return run(fault)

        found |= {fault: one.submit(run_alone, fault) for fault in wanted.intersection(ALONE)}
        yield found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_nothing_is_lost_and_nothing_trained_twice(struck, fault):
    place, (records, resumed_at) = struck[fault].result(), FAULTS[fault]
    assert [(job["JobState"], job["Restarts"]) for job in place.jobs("train")] == records, place.told()
    assert place.resumed_at() == resumed_at
    assert list(place.losses()) == list(range(1, STEPS + 1))
    assert {len(lines) for lines in place.losses().values()} == {1}
    assert place.model() == struck[undisturbed].result().model()


@pytest.mark.parametrize("fault", [killed, out_of_time], ids=lambda fault: fault.__name__)
def test_a_retry_asks_for_more(struck, fault):
    first, second = struck[fault].result().jobs("train")
    assert (first["MinMemoryNode"], second["MinMemoryNode"]) == ("800M", "1600M")
    assert second["TimeLimit"] == "00:40:00"


@pytest.mark.parametrize("fault", [out_of_time], ids=lambda fault: fault.__name__)
def test_a_training_out_of_time_says_that_it_saved(struck, fault):
    told = struck[fault].result().told()
    assert f"USR1: step {HELD_AT + 1} of {STEPS} saved; exit code 75" in told
    assert (
        "User defined signal 1" not in told
    )  # Snakemake around the stage must not die of the signal: cgroups kill what it leaves


@pytest.mark.parametrize("fault", [on_two_nodes], ids=lambda fault: fault.__name__)
def test_two_nodes_train_what_one_process_trains(struck, fault):
    place = struck[fault].result()
    (job,) = place.jobs("train")
    assert (job["NumNodes"], job["NodeList"], job["TresPerJob"]) == ("2", "node[0-1]", "gres:gpu:2")
    ours, other = place.losses(), struck[undisturbed].result().losses()
    assert ours.keys() == other.keys()
    assert [ours[step][0] for step in ours] == pytest.approx([other[step][0] for step in other], rel=1e-4)
