"""Every overlay in config/studies validates and plans: Snakemake's own dry run, all overlays in one process.

Nothing of a study need be there for that: hub models and data sets are fetched later, by `snakemake assets`; model folders are stood in
for by empty ones.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mtkv.config.study import read_study

REPOSITORY = Path(__file__).parents[2]
OVERLAYS = sorted((REPOSITORY / "config/studies").glob("*.yaml"))
PLAN = """
import contextlib, io, json, sys
from snakemake.cli import main
found = {}
for overlay in sys.argv[1:]:
    said, code = io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(["--cores", "2", "--dry-run", "--quiet", "rules", "--configfile", overlay, "--", "all"])
        except SystemExit as end:
            code = end.code
    found[overlay] = [code, said.getvalue()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Exit code and output of each overlay's dry run, in a folder that holds no assets."""
    folder = tmp_path_factory.mktemp("plans")
    shutil.copy(REPOSITORY / "Snakefile", folder)
    for name in ("workflow", "config"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for overlay in OVERLAYS:
        for model in models_of(overlay):
            if model.get("source") == "path":
                (folder / model["name"]).mkdir(parents=True, exist_ok=True)
                (folder / model["name"] / "config.json").write_text("{}")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "MTKV_ASSETS": str(folder / "nothing")}
    command = [sys.executable, "-c", PLAN, *(f"config/studies/{overlay.name}" for overlay in OVERLAYS)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {Path(name).name: outcome for name, outcome in json.loads(done.stdout.splitlines()[-1]).items()}


def models_of(overlay):
    text = yaml.safe_load(overlay.read_text(encoding="utf-8"))
    models = [text.get("student"), *text.get("teachers", {}).get("models", {}).values()]
    return [model for model in models if model]


def expected(study):
    """Jobs by rule, counted from the study's words alone."""
    runs = [(name, seed) for name in study.arms for seed in study.seeds_of(name)]
    trained = [run for run in runs if study.trained(run[0])]
    parts = len(study.datasets) if study.evaluation.jobs == "per_dataset" else 1
    counts = Counter(
        data=1, compare=1, report=1, train=len(trained), predict=len(runs) * parts, score=len(runs) * parts
    )
    teachers = {
        teacher
        for name, _ in trained
        for teacher in (study.arms[name].kv.teachers if study.arms[name].kv else [])
        if teacher != "student"  # which has neither store nor map
    }
    if study.teachers.mode == "stored":
        counts["teacher_kv"], counts["teacher_index"] = len(teachers) * study.teachers.shards, len(teachers)
    counts["map"] = len(teachers)
    if with_latents := [name for name, _ in trained if study.arms[name].latent and study.arms[name].latent.tokens]:
        counts["latents"] = len(with_latents)
    return counts


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_it_validates_and_plans(overlay, plans):
    study = read_study(REPOSITORY / "config/config.yaml", overlay)
    code, said = plans[overlay.name]
    assert code in (0, None), said[-3000:]
    counts = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}
    counts = {name: count for name, count in counts.items() if name not in ("all", "total")}
    assert counts == expected(study)


def test_every_study_says_what_it_costs():
    for overlay in OVERLAYS:
        header = overlay.read_text(encoding="utf-8").partition("\nstudy:")[0]
        assert re.search(r"cost|ablation", header, re.IGNORECASE), overlay.name
