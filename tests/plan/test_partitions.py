"""Limits of partitions, from both of their sources, and the jobs that they refuse."""

import stat
from math import inf

import pytest

from mtkv.ops.cost_model.estimate import CostEstimate
from mtkv.ops.plan.plan import amount, disk_problems, partition_problems, time_problems
from mtkv.ops.planned_jobs import PlannedJob, gres_gpus
from mtkv.ops.slurm.partitions import (
    ClusterPartition,
    minutes,
    parse_partitions,
    partitions_in_file,
    partitions_of_cluster,
)

SCONTROL = (
    "PartitionName=gpu AllowGroups=ALL Default=NO MaxNodes=2 MaxTime=1-00:00:00 MaxMemPerNode=UNLIMITED State=UP"
    " TotalCPUs=128 TotalNodes=4 TRES=cpu=128,mem=2000000M,node=4,gres/gpu=16,gres/gpu:a100=0\n"
    "PartitionName=cpu Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED MaxMemPerNode=64000 TotalCPUs=32 TotalNodes=2"
    " TRES=cpu=32,mem=128000M,node=2\n"
)


def job(rule="train", threads=1, local=False, outputs=(), number=0, **resources):
    return PlannedJob(number, rule, {"arm": "sft"}, (), outputs, {}, threads, resources, local, (), True)


def estimate(minutes=0.0, written=0.0, transient=0.0):
    return CostEstimate(minutes * 60, written, transient, "estimated")


def test_scontrol_is_read():
    gpu, cpu = parse_partitions(SCONTROL)
    assert gpu == ClusterPartition("gpu", runtime=1440, threads=32, gpus=16, gpus_per_node=4, nodes=2)
    assert cpu == ClusterPartition("cpu", inf, mem_mb=64000, threads=16, gpus=0, gpus_per_node=0, nodes=2, default=True)


@pytest.mark.parametrize("text", ["30", "90:30", "2:00:00", "1-12", "1-12:30", "1-12:30:30", "2h", "30m", "1d"])
def test_times_mean_what_the_slurm_plugin_takes_them_for(text):
    utils = pytest.importorskip("snakemake_executor_plugin_slurm.utils")
    assert minutes(text) == pytest.approx(utils.parse_time_to_minutes(text), abs=1)


def test_times_that_are_none():
    assert minutes("UNLIMITED") == inf
    with pytest.raises(ValueError, match="soon"):
        minutes("soon")


def test_a_partition_file_is_read_and_one_of_another_form_refused(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("account: x\npartitions:\n  big: {max_runtime: 2-00, max_mem_mb: 500000, max_gpu: 8}\n  any: {}\n")
    assert partitions_in_file(file) == [
        ClusterPartition("big", runtime=2880, mem_mb=500000, gpus=8),
        ClusterPartition("any", gpus=0),
    ]
    file.write_text("- big\n")
    with pytest.raises(ValueError, match="partitions"):
        partitions_in_file(file)


def test_the_cluster_is_asked_through_scontrol(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert partitions_of_cluster() == []
    (tmp_path / "said").write_text(SCONTROL)
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\n[ "$*" = "--oneliner show partition" ] && exec /bin/cat {tmp_path}/said\nexit 1\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    assert partitions_of_cluster() == parse_partitions(SCONTROL)
    command.write_text("#!/bin/sh\nexit 1\n")
    assert partitions_of_cluster() == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"runtime": 1441}, "runtime 1441 > 1440 minutes"),
        ({"threads": 33}, "threads 33 > 32 cores"),
        ({"gpu": 17, "nodes": 5}, "gpu 17 > 16 GPUs"),
        ({"gpu": 5}, "gpu per node 5 > 4 GPUs"),
        ({"gres": "gpu:a100:5"}, "gpu per node 5 > 4 GPUs"),
        ({"nodes": 3}, "nodes 3 > 2 nodes"),
    ],
)
def test_each_limit_refuses(asked, said):
    gpu, _ = parse_partitions(SCONTROL)
    assert said in gpu.refuses(job(**asked))
    assert gpu.refuses(job(runtime=1440, threads=32, gpu=8, nodes=2)) == []


def test_gpu_models_and_gres():
    few = ClusterPartition("few", gpu_models=("a100",))
    assert few.refuses(job(gpu=1, gpu_model="h100")) == ["gpu_model h100 is not one of a100"]
    assert few.refuses(job(gpu=1, gpu_model="a100")) == []
    assert [gres_gpus(text) for text in ("gpu:2", "gpu:a100:3", "gpu", "tmpfs:5,gpu:1", "", "mps:100")] == [
        2,
        3,
        1,
        1,
        0,
        0,
    ]
    assert job(gres="gpu:h100:4", nodes=2).gpus == 8
    assert job(gpu=8, nodes=2).gpus == 8


def test_what_no_partition_takes_is_said_once_with_the_way_out():
    partitions = parse_partitions(SCONTROL)
    (said,) = partition_problems([job("teacher_kv", gpu=40, nodes=9), job("teacher_kv", gpu=40, nodes=9)], partitions)
    assert "no partition takes it" in said
    assert "resources.teachers" in said
    assert partition_problems([job(gpu=0, mem_mb=64000)], partitions) == []  # the default takes it
    (said,) = partition_problems([job(mem_mb=64001)], partitions)
    assert "mem_mb 64001 > 64000 MB" in said
    (said,) = partition_problems([job(slurm_partition="gpus")], partitions)
    assert "'gpus' is not one of gpu, cpu" in said
    assert partition_problems([job(slurm_partition="gpu", gpu=2)], partitions) == []
    assert partition_problems([job(local=True, gpu=400)], partitions) == []
    assert partition_problems([job(gpu=400)], []) == []


def test_an_estimate_near_or_above_the_time_limit_is_said():
    jobs = [job(number=0, runtime=30), job(number=1, runtime=30), job("score", number=2)]
    assert time_problems(jobs, {0: estimate(20), 1: estimate(5), 2: estimate(9999)}) == []
    (said,) = time_problems(jobs, {0: estimate(25), 1: estimate(90), 2: estimate(1)})
    assert "90 minutes" in said
    assert "limit is 30" in said
    assert "resources.train.runtime" in said


def test_a_disk_too_small_is_said_first_with_both_parts(tmp_path):
    outputs = [f"results/s/arms/{n}/model" for n in range(3)]
    jobs = [job(number=n, outputs=(path,)) for n, path in enumerate(outputs)]
    estimates = {n: estimate(written=3e9, transient=(n + 1) * 1e9) for n in range(3)}
    # 9 GB of results, and the two largest checkpoints at once: 3 + 2 GB
    assert disk_problems(jobs, estimates, 2, tmp_path, free=lambda path: 14_000_000_000) == []
    (said,) = disk_problems(jobs, estimates, 2, tmp_path, free=lambda path: 13_999_999_999)
    assert "14.0 GB are needed (9.0 GB of results, 5.0 GB of checkpoints" in said
    old = tmp_path / outputs[0]
    old.mkdir(parents=True)
    (old / "weights").write_bytes(b"0" * 1_000_000)  # is replaced
    assert disk_problems(jobs, estimates, 2, tmp_path, free=lambda path: 13_999_000_000) == []


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB"), (-3e6, "-3.0 MB"), (1e12, "1.0 TB")],
)
def test_amounts_are_powers_of_ten(size, text):
    assert amount(size) == text
