"""`snakemake clean_checkpoints` knows the jobs of the study as Snakemake makes them."""

import shutil
from pathlib import Path

import pytest
import yaml
from copied import ended

REPOSITORY = Path(__file__).parents[2]
SMALL = {"seeds": [42], "datasets": ["pocket_gsm8k", "pocket_cmmlu"]}
STAGES = {"teacher_kv": "teachers", "train": "arms", "predict": "predictions"}
TOUCH = """import pathlib
for output in snakemake.output:
    path = pathlib.Path(output)
    path.mkdir(parents=True, exist_ok=True) if not path.suffix else path.touch()
"""
# Leaves a step behind and does not say that it is finished, as a job that dies after its outputs.
STEP = """from mtkv.checkpointing.store import Checkpoint
with Checkpoint.for_job(snakemake, "{stage}") as checkpoint:
    checkpoint.save(1, lambda folder: (folder / "a").write_bytes(b"x" * 1000))
"""


def snakemake(folder, target):
    code, said = ended(folder, "--cores", "2", "--configfile", "study.yaml", "--quiet", "--", target)
    assert code == 0, said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("workflow", "config", "src", "profiles"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(REPOSITORY / "tests/classic_study.yaml", folder / "config/config.yaml")
    for script in (folder / "workflow/scripts").iterdir():
        if script.stem != "clean_checkpoints":
            step = STEP.format(stage=STAGES[script.stem]) if script.stem in STAGES else ""
            script.write_text(TOUCH + step)
    return folder


@pytest.mark.parametrize("jobs", ["per_run", "per_dataset"])
def test_jobs_are_recognised_and_become_stale_with_a_setting(folder, jobs):
    claims = yaml.safe_load((folder / "config/config.yaml").read_text(encoding="utf-8"))["claims"]
    gone = {name: None for name, claim in claims.items() if claim.get("at_least", 0) > len(SMALL["datasets"])}

    def write(**changes):
        study = SMALL | {"evaluation": {"jobs": jobs}, "claims": gone} | changes
        (folder / "study.yaml").write_text(yaml.safe_dump(study))

    write()
    seed = "results/pocket/scores/learnable/seed42/pocket_gsm8k.json"
    snakemake(folder, seed)
    left = list((folder / "checkpoints").iterdir())
    log = folder / "results/pocket/logs/clean_stale_checkpoints.log"
    snakemake(folder, "clean_stale_checkpoints")
    lines = log.read_text().splitlines()
    assert len(lines) == len(left) + 1
    assert all("resumable: " in line for line in lines[:-1]), lines
    assert {line.split("resumable: ")[1].split()[0] for line in lines[:-1]} == set(STAGES.values())
    if jobs == "per_dataset":
        return
    write(teachers={"batch_size": 3})
    (folder / "results").rename(folder / "others")  # so that the test sees what the settings alone say
    snakemake(folder, "clean_checkpoints")
    assert set((folder / "checkpoints").iterdir()) == set(left)
    snakemake(folder, "clean_stale_checkpoints")
    gone = [line for line in log.read_text().splitlines() if line.strip().startswith("removed  ")]
    assert gone
    assert all("stale: teachers" in line for line in gone), gone
    for name in ("checkpoints", "others", "results"):
        shutil.rmtree(folder / name)
