"""The jobs that `mtkv status` expects are those of Snakemake's own dry run: rule, wildcards, outputs and log of each."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mtkv.config.study import read_study
from mtkv.ops.status.jobs import RULES, jobs_of

REPOSITORY = Path(__file__).parents[2]
CLAIMS = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text(encoding="utf-8"))["claims"]
VARIANTS = {
    "pocket": {},
    "one-dataset": {"datasets": ["pocket_bbh"]},
    "online": {"teachers": {"mode": "online"}},
    "components": {"teachers": {"tier": "components", "shards": 3}, "arms": {"teacher_ce": None}},
    "per-dataset": {"evaluation": {"jobs": "per_dataset"}, "seeds": [7], "datasets": ["pocket_bbh", "pocket_ceval"]},
    "two-aligns": {"arms": {"shifted": {"extends": "fixed", "seeds": [1, 2], "kv": {"align": {"layers": "cka"}}}}},
}
# Studies whose jobs have shapes of their own; that all others plan is tests/workflow/test_studies.py's business.
OVERLAYS = [REPOSITORY / f"config/studies/{name}.yaml" for name in ("kava", "kava-pocket", "mixed-families", "qwen2.5")]
# One process, so that Snakemake is imported once.
DRY_RUNS = """
import contextlib, io, json, sys
from snakemake.cli import main
found = {}
for overlay in sys.argv[1:]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(["--cores", "2", "--dry-run", "--configfile", overlay, "--", "all"])
        except SystemExit:
            pass
    found[overlay] = said.getvalue()
print(json.dumps(found))
"""
BLOCK = re.compile(r"^ *(?:local)?rule (\w+):\n((?: +\w.*\n)+)", re.MULTILINE)
LINE = re.compile(r"^ +(output|log|wildcards): (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Output of Snakemake's dry run by overlay, in a folder without assets."""
    folder = tmp_path_factory.mktemp("planned")
    shutil.copy(REPOSITORY / "Snakefile", folder)
    for name in ("workflow", "config"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for name, overlay in VARIANTS.items():
        gone = {"claims": dict.fromkeys(CLAIMS)}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(overlay | gone), encoding="utf-8")
    for overlay in OVERLAYS:
        study = read_study(REPOSITORY / "config/config.yaml", overlay)
        for model in (study.student, *study.teachers.models.values()):
            if model.source == "path":
                (folder / model.name).mkdir(parents=True, exist_ok=True)
                (folder / model.name / "config.json").write_text("{}")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "MTKV_ASSETS": str(folder / "nothing")}
    names = [f"{name}.yaml" for name in VARIANTS] + [f"config/studies/{path.name}" for path in OVERLAYS]
    command = [sys.executable, "-c", DRY_RUNS, *names]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "name", [*(f"{name}.yaml" for name in VARIANTS), *(f"config/studies/{p.name}" for p in OVERLAYS)]
)
def test_expected_jobs_are_snakemakes(name, planned):
    folder, said = planned
    theirs = {}
    for rule, block in BLOCK.findall(said[name]):
        if rule != "all":
            lines = dict(LINE.findall(block))
            wildcards = dict(pair.split("=", 1) for pair in lines.get("wildcards", "").split(", ") if pair)
            theirs[frozenset(lines["output"].split(", "))] = (rule, lines["log"], wildcards)
    assert theirs, said[name][-2000:]
    jobs = jobs_of(read_study(REPOSITORY / "config/config.yaml", folder / name))
    ours = {frozenset(job.outputs): (job.rule, job.log, job.wildcards) for job in jobs}
    assert ours == theirs
    assert len(ours) == len(jobs)


def test_every_rule_is_seen_by_some_variant(planned):
    assert {rule for text in planned[1].values() for rule, _ in BLOCK.findall(text)} - {"all"} == set(RULES)


def test_cards_are_among_the_outputs():
    for job in jobs_of(read_study(REPOSITORY / "config/config.yaml")):
        assert (job.card in job.outputs) == (job.rule != "score")
