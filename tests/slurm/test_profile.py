"""The profile and the site's file, without a cluster: what the plugin makes of them, and what is refused."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from slurm.studies import REPOSITORY

from mtkv.config.errors import ConfigError
from mtkv.config.site import Site, read_site

plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
from snakemake_executor_plugin_slurm.partitions import get_best_partition, read_partition_file  # noqa: E402
from snakemake_executor_plugin_slurm.submit_string import get_submit_command  # noqa: E402
from snakemake_executor_plugin_slurm.utils import set_gres_string  # noqa: E402

PARTITIONS = {
    "long": {"max_runtime": 2880, "max_mem_mb": 250000},
    "gpu": {"max_runtime": 1440, "max_mem_mb": 500000, "max_gpu": 8},
    "gpu-short": {"max_runtime": 60, "max_mem_mb": 500000, "max_gpu": 2},
}


class Resources(dict):
    """As the plugin sees a job's resources."""

    __getattr__ = dict.__getitem__


def job(**resources):
    return SimpleNamespace(resources=Resources(resources), threads=4, name="train", is_group=lambda: False)


def sbatch(site, gpus, nodes=1, saves=True):
    """The command line that the plugin makes of a site's flags."""
    asked = job(mem_mb=1000, runtime=30, **site.gpu_flags(gpus, nodes), **site.flags(gpus, saves))
    told = {
        "run_uuid": "id",
        "slurm_logfile": "log",
        "comment_str": "c",
        "account": "",
        "partition": "",
        "workdir": ".",
    }
    return get_submit_command(asked, told) + set_gres_string(asked)


@pytest.mark.parametrize(
    ("site", "gpus", "nodes", "present", "absent"),
    [
        ({}, 0, 1, "--ntasks=1", "gpu"),
        ({}, 2, 1, "--gpus=2", "--gres|--ntasks"),
        ({"gpu_model": "h100"}, 2, 1, "--gpus=h100:2", "--gres"),
        ({"gpu_model": "h100"}, 0, 1, "--ntasks=1", "h100|gpus"),  # the plugin would ask for --gpus=h100:0
        ({"gpu_request": "gres"}, 1, 1, "--gres=gpu:1", "--gpus"),
        ({"gpu_request": "gres", "gpu_model": "a100"}, 8, 2, "--gres=gpu:a100:4", "--gpus"),
        ({}, 16, 2, "--nodes=2 .*--ntasks=2 .*--gpus=16", "--ntasks-per-gpu"),
        ({"qos": "long", "constraint": "a100_80gb"}, 1, 1, "-C a100_80gb .*--qos=long", "XX"),
        ({"constraint": "a100_80gb"}, 0, 1, "--ntasks=1", "a100"),
        ({"sbatch": "--mail-type=FAIL --hint=nomultithread"}, 1, 1, "--mail-type=FAIL --hint=nomultithread", "XX"),
        ({"signal_seconds": 300}, 1, 1, "--signal=USR1@300", "XX"),
        ({"signal_seconds": 0}, 1, 1, "--gpus=1", "--signal"),
    ],
)
def test_sbatch_is_asked_as_the_site_says(site, gpus, nodes, present, absent):
    command = sbatch(Site.model_validate(site), gpus, nodes)
    assert re.search(present, command), command
    assert not re.search(absent, command), command


def test_stages_that_cannot_save_get_no_signal():
    assert "--signal" in sbatch(Site(), 1, saves=True)
    assert "--signal" not in sbatch(Site(), 1, saves=False)


def test_the_plugin_reads_partitions_from_the_same_file(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump({"gpu_model": "h100", "partitions": PARTITIONS}))
    read, logger = read_partition_file(path), SimpleNamespace(debug=print, info=print, warning=print)
    best = {
        name: get_best_partition(read, job(mem_mb=1000, **asked), logger)
        for name, asked in {
            "cpu": {"runtime": 100},
            "gpu": {"runtime": 100, "gpu": 1},
            "both": {"runtime": 40, "gpu": 2},
            "eight": {"runtime": 40, "gpu": 8},
        }.items()
    }
    assert best == {"cpu": "long", "gpu": "gpu", "both": "gpu-short", "eight": "gpu"}
    site = read_site(path)
    assert [site.most("max_runtime", gpus) for gpus in (0, 1, 8)] == [2880, 1440, 1440]
    assert Site().most("max_mem_mb", 0) == float("inf")


def test_the_shipped_file_is_the_default_site_and_its_example_is_valid(tmp_path):
    shipped = REPOSITORY / "profiles/slurm/site.yaml"
    assert read_site(shipped) == Site() == read_site(tmp_path / "absent.yaml")
    text = shipped.read_text()
    example = text.replace("partitions: {}", "partitions:").replace("\n#  ", "\n  ")
    assert example != text
    (tmp_path / "site.yaml").write_text(example)
    assert set(read_site(tmp_path / "site.yaml").partitions) == {"gpu", "cpu"}
    described = {name for name in Site.model_fields if re.search(rf"^{name}: .*#|^{name}:", text, re.MULTILINE)}
    assert described == set(Site.model_fields)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"gpu_request": "gpu"}, ["gpu_request", "'gpu'", "gpus, gres"]),
        ({"acount": "x"}, ["acount", "account"]),
        ({"partitions": {"gpu": {"max_runtime": "1-00:00"}}}, ["partitions.gpu.max_runtime", "whole number"]),
        ({"gpu_model": "nvidia h100"}, ["gpu_model", "nvidia h100"]),
    ],
)
def test_a_wrong_site_is_answered_with_file_field_and_value(tmp_path, monkeypatch, wrong, words):
    monkeypatch.chdir(tmp_path)  # of a long path the message shows a part
    path = Path("site.yaml")
    path.write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError) as error:
        read_site(path)
    assert all(word in str(error.value) for word in ["site.yaml", *words]), str(error.value)


def test_the_rules_ask_through_the_site(tmp_path):
    """A dry run with the real profile, and a site and a study of our own. (It does not tell local rules from others.)"""
    for name in ("Snakefile", "workflow", "config", "requirements.lock"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "profiles/slurm").mkdir(parents=True)
    text = (REPOSITORY / "profiles/slurm/config.yaml").read_text()
    (tmp_path / "profiles/slurm/config.yaml").write_text(text)
    site = {"account": "abc", "gpu_request": "gres", "gpu_model": "a100", "partitions": PARTITIONS}
    (tmp_path / "profiles/slurm/site.yaml").write_text(yaml.safe_dump(site))
    study = {"resources": {"train": {"gpu": 1, "mem_mb": 4000, "runtime": 90}, "predict": {"gpu": 1}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = ["--profile", "profiles/slurm", "--snakefile", str(tmp_path / "Snakefile"), "-n", "all"]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *command, "--configfile", "study.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    asked = dict(re.findall(r"^ *rule (\w+):\n(?:    .*\n)*? +resources: (.*)$", done.stdout, re.MULTILINE))
    for name, words in {
        "train": "mem_mb=4000 runtime=90 gres=gpu:a100:1 slurm_account=abc slurm_extra=--signal=USR1@120",
        "predict": "gres=gpu:a100:1 predicting=1 slurm_extra=--signal=USR1@120",
        "teacher_kv": "gpu=0 slurm_extra=--signal=USR1@120",
        "map": "gpu=0 slurm_account=abc",
    }.items():
        assert all(word in asked[name].split(", ") for word in words.split()), asked[name]
    assert "signal" not in asked["map"]


def test_make_shows_bars_on_a_terminal_only():
    def printed(**where):
        return subprocess.run(
            ["make", "--no-print-directory", "-n", "study"], cwd=REPOSITORY, text=True, check=True, **where
        )

    assert "--logger" not in printed(capture_output=True).stdout
    ours, terminal = pty.openpty()
    try:
        assert "--logger rich all" in printed(stdout=subprocess.PIPE, stderr=terminal).stdout
    finally:
        os.close(ours)
        os.close(terminal)
