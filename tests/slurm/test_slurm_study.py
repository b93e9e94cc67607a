"""The pocket study through `profiles/slurm` on a real SLURM, judged by SLURM's own records."""

from datetime import datetime

import pandas as pd
import pytest
from slurm.cluster import NODES
from slurm.studies import STUDY

DATASETS = len(STUDY["datasets"])
ARMS = ("single", "values_only")
# rule: stage of `resources`, jobs, partition, members of a job
ASKED = {
    "teacher_kv": ("teachers", STUDY["teachers"]["shards"], "gpu", 1),
    "map": ("maps", 1, "cpu", 1),
    "train": ("train", len(ARMS), "gpu", 1),
    "predict": ("predict", len(ARMS), "gpu", DATASETS),
}


def minutes(limit):
    hours, minutes, seconds = map(int, limit.split(":"))
    return 60 * hours + minutes + seconds / 60


def test_the_study_is_whole(study):
    assert (study.folder / "results/pocket/report/index.html").stat().st_size > 100_000
    cells = pd.read_parquet(study.folder / "results/pocket/compare/cells.parquet")
    assert set(cells["arm"]) == set(ARMS)


@pytest.mark.parametrize("rule", ASKED)
def test_slurm_was_asked_for_what_the_study_says(study, rule):
    stage, count, partition, members = ASKED[rule]
    asked, jobs = STUDY["resources"][stage], study.jobs(rule)
    assert len(jobs) == count
    for job in jobs:
        fudge = 1 if rule == "teacher_kv" else 0  # MB that the plugin adds to an array
        tres = dict(item.split("=") for item in job["TRES"].split(","))
        assert job.get("TresPerJob") == (f"gres:gpu:{asked['gpu']}" if asked.get("gpu") else None)
        assert tres["mem"] == f"{asked['mem_mb'] + fudge}M"
        assert minutes(job["TimeLimit"]) == asked["runtime"] * members
        assert (job["Partition"], job["JobState"], job["Restarts"]) == (partition, "COMPLETED", "0")


def test_shards_are_one_array(study):
    jobs = study.jobs("teacher_kv")
    assert len({job["ArrayJobId"] for job in jobs}) == 1
    assert sorted(job["ArrayTaskId"] for job in jobs) == ["1", "2"]


def test_each_run_answers_its_datasets_in_one_job(study):
    groups = [job["Comment"] for job in study.jobs("predict")]
    assert sorted(groups) == sorted(f"rule_predict_{arm}_42_predict" for arm in ARMS)
    assert len(list(study.folder.glob("results/pocket/predictions/*/seed42/*.card.json"))) == len(ARMS) * DATASETS


def test_no_more_jobs_ran_at_once_than_there_are_gpus(study):
    jobs = [job for job in study.cluster.jobs_of("", study.folder) if job["Partition"] == "gpu"]
    spans = [[datetime.fromisoformat(job[name]) for name in ("StartTime", "EndTime")] for job in jobs]
    assert max(sum(start <= moment < end for start, end in spans) for moment, _ in spans) <= len(NODES)


def test_cpu_stages_ran_on_the_login_node(study):
    rules = {job["Comment"] for job in study.cluster.jobs_of("", study.folder)}
    sent = {name for name in ASKED if any(comment.startswith(f"rule_{name}") for comment in rules)}
    assert sent == set(ASKED)
    assert len(study.cluster.jobs_of("", study.folder)) == sum(count for _, count, _, _ in ASKED.values())


def test_slurms_log_of_ended_jobs_agrees(study):
    ended = [line for line in study.cluster.completions() if line["WorkDir"] == str(study.folder)]
    assert {line["JobState"] for line in ended} == {"COMPLETED"}
    assert len(ended) == sum(count for _, count, _, _ in ASKED.values())
