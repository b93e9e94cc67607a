"""What a change reruns, asked of Snakemake itself on a finished study.

The study's own rules run once with scripts that only touch their outputs, so that Snakemake's records are real. Then each
change is made to a copy and a dry run says which jobs would run.
"""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from copied import ended

REPOSITORY = Path(__file__).parents[2]
SMALL = {"seeds": [42, 43], "datasets": ["pocket_gsm8k", "pocket_cmmlu"]}
TOUCH = """import pathlib
for output in snakemake.output:
    path = pathlib.Path(output)
    path.mkdir(parents=True, exist_ok=True) if not path.suffix else path.touch()
"""


def snakemake(folder, *arguments):
    code, said = ended(folder, "--cores", "2", "--configfile", "study.yaml", *arguments)
    assert code == 0, said
    return said


def planned(folder, *arguments):
    """Jobs by rule of a dry run, without the target rule."""
    text = snakemake(folder, "--dry-run", "--quiet", "rules", "--", *arguments)
    table = re.search(r"^job +count\n-+ +-+\n(.*?)^total", text, re.MULTILINE | re.DOTALL)
    if table is None:
        assert "Nothing to be done" in text or not text.strip(), text
        return {}
    counts = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table[1], re.MULTILINE)}
    return {name: count for name, count in counts.items() if name != "all"}


def without_claims(study):
    """Few datasets and seeds; claims that name datasets left out are deleted."""
    claims = yaml.safe_load((REPOSITORY / "tests/classic_study.yaml").read_text(encoding="utf-8"))["claims"]
    gone = {name: None for name, claim in claims.items() if claim.get("at_least", 0) > len(study["datasets"])}
    return study | {"claims": gone}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with the workflow, a copy of the package and a finished study."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("workflow", "config", "src"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(REPOSITORY / "tests/classic_study.yaml", folder / "config/config.yaml")
    for script in (folder / "workflow/scripts").iterdir():
        script.write_text(TOUCH)
    (folder / "study.yaml").write_text(yaml.safe_dump(without_claims(SMALL)))
    snakemake(folder, "--quiet", "all")
    assert planned(folder) == {}
    return folder


@pytest.fixture
def study(finished, tmp_path):
    """A copy of the finished study that a test may change."""
    shutil.copytree(finished, tmp_path / "study", symlinks=True)
    return tmp_path / "study"


def change_config(study, **changes):
    (study / "study.yaml").write_text(yaml.safe_dump(without_claims(SMALL) | changes))


def edit(study, path, old, new):
    file = study / path
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{path} no longer has {old!r}; mend this test"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_an_added_arm_runs_its_own_jobs_only(study):
    change_config(study, arms={"keys_only": {"extends": "fixed", "kv": {"loss": {"lambda_v": 0.0}}}})
    assert planned(study) == {"train": 2, "predict": 2, "score": 2, "compare": 1, "report": 1}


def test_a_gate_needs_what_its_arm_is_trained_from_and_no_arm(study):
    target = "results/pocket/gate/single/steps10-batches4/card.json"
    assert planned(study, target) == {"gate": 1}
    shutil.rmtree(study / "results")
    assert planned(study, target) == {"data": 1, "teacher_kv": 2, "teacher_index": 1, "map": 1, "gate": 1}


def test_an_added_seed_runs_its_own_jobs_only(study):
    change_config(study, seeds=[42, 43, 44])
    assert planned(study) == {"train": 6, "predict": 6, "score": 6, "compare": 1, "report": 1}


def test_an_added_dataset_trains_nothing(study):
    change_config(study, datasets=[*SMALL["datasets"], "pocket_bbh"])
    assert planned(study) == {"predict": 15, "score": 15, "compare": 1, "report": 1}


def test_one_arms_weight_retrains_that_arm_and_those_that_extend_it(study):
    change_config(study, arms={"similarity": {"kv": {"fusion": {"temperature": 0.5}}}})
    assert planned(study) == {"train": 2, "predict": 2, "score": 2, "compare": 1, "report": 1}


def test_descriptions_and_claims_train_nothing(study):
    change_config(study, arms={"fixed": {"description": "another text"}}, description="another")
    assert planned(study) == {"compare": 1, "report": 1}


def test_edited_losses_rerun_training_and_below(study):
    edit(
        study,
        "src/mtkv/distill/kv_distance.py",
        "if len(student) == 0 or not kept:",
        "if len(student) < 1 or not kept:",
    )
    assert planned(study) == {"train": 12, "predict": 12, "score": 12, "compare": 1, "report": 1}


def test_an_edited_module_of_ones_own_reruns_what_names_it(study):
    own = study / "my_selectors.py"
    own.write_text('def longest(tokens):\n    """Scores."""\n    return tokens.keys.norm(dim=-1)\n')
    arm = {"extends": "fixed", "kv": {"select": {"method": "my_selectors:longest", "budget": 4}}}
    change_config(study, arms={"longest": arm})
    runs = {"train": 2, "predict": 2, "score": 2, "compare": 1, "report": 1}
    assert planned(study) == runs
    snakemake(study, "--quiet", "all")
    edit(study, "my_selectors.py", "Scores", "Other words")
    assert planned(study) == {}
    edit(study, "my_selectors.py", "norm(dim=-1)", "norm(dim=-1).neg()")
    assert planned(study) == runs


def test_edited_report_reruns_the_report_only(study):
    edit(study, "src/mtkv/stages/report.py", "\ndef ", "\nUNUSED = 1\n\n\ndef ")
    assert planned(study) == {"report": 1}


SHOWN = (
    "arms/learnable/seed42/training.parquet",
    "arms/learnable/seed42/routing.parquet",
    "maps/qwen2/*.probe.parquet",
    "maps/qwen2/*.example.parquet",
    "teachers/gpt2/card.json",
    "predictions/raw/seed42/card.json",
)


def test_what_only_the_report_shows_reruns_the_report_only(study):
    changed = [next((study / "results/pocket").glob(pattern)) for pattern in SHOWN]
    for file in changed:
        file.write_text("changed")
    text = snakemake(study, "--dry-run")
    (reason,) = re.findall(r"reason: Updated input files: (.*)", text)
    assert {study / path for path in reason.split(", ")} == set(changed)
    assert re.findall(r"^(?:local)?rule (\w+):", text, re.MULTILINE) == ["report", "all"]


def test_a_changed_answer_reruns_its_score_and_the_report(study):
    (study / "results/pocket/predictions/raw/seed42/pocket_cmmlu.parquet").write_text("changed")
    assert planned(study) == {"score": 1, "compare": 1, "report": 1}


def test_edited_statistics_rerun_comparison_and_report(study):
    edit(study, "src/mtkv/stages/compare.py", "\ndef ", "\nUNUSED = 1\n\n\ndef ")
    assert planned(study) == {"compare": 1, "report": 1}


@pytest.mark.parametrize(
    "path", ["src/mtkv/distill/kv_distance.py", "src/mtkv/kv/capture.py", "src/mtkv/provenance/card.py"]
)
def test_a_comment_in_a_module_reruns_nothing(study, path):
    file = study / path
    file.write_text(file.read_text(encoding="utf-8") + "\n# a remark\n", encoding="utf-8")
    assert planned(study) == {}


def test_touching_the_config_reruns_nothing(study):
    (study / "config/config.yaml").touch()
    (study / "study.yaml").touch()
    assert planned(study) == {}


def test_one_score_file_needs_its_own_run_only(study):
    shutil.rmtree(study / "results")
    shutil.rmtree(study / ".snakemake")
    target = "results/pocket/scores/learnable/seed42/pocket_gsm8k.json"
    assert planned(study, target) == {
        "data": 1,
        "teacher_kv": 4,
        "teacher_index": 2,
        "map": 2,
        "train": 1,
        "predict": 1,
        "score": 1,
    }


TAUGHT = {"extends": "single", "kv": {"teachers": ["trained"]}, "seeds": [42]}


def run_of(folder, **names):
    """Adds a teacher that is a run of arm sft, and an arm that it teaches; returns the arm's card, and the run's folder."""
    teacher = {"source": "run", "arm": "sft", "seed": 42} | names
    change_config(folder, arms={"taught": TAUGHT}, teachers={"models": {"trained": teacher}})
    return (
        "results/pocket/arms/taught/seed42/card.json",
        folder / f"results/{names.get('study', 'pocket')}/arms/sft/seed42",
    )


def test_a_teacher_that_is_a_run_of_the_study_is_trained_first(study):
    target, _ = run_of(study)
    above = {"teacher_kv": 2, "teacher_index": 1, "map": 1}
    assert planned(study, target) == above | {"train": 1}
    snakemake(study, "--quiet", "all", "--", target)
    assert planned(study, target) == {}
    edit(study, "study.yaml", "arms:", "arms:\n  sft: {training: {weight_decay: 0.1}}")
    shard = "results/pocket/teachers/trained/shard-0001.safetensors"
    assert planned(study, shard) == {"train": 1, "teacher_kv": 1}
    assert planned(study, target) == above | {"train": 2}
    shutil.rmtree(study / "results")
    assert planned(study, shard) == {"data": 1, "train": 1, "teacher_kv": 1}


def test_a_run_of_another_study_is_not_trained_and_its_weights_decide(study):
    target, folder = run_of(study, study="before")
    shutil.copytree(study / "results/pocket/arms/sft/seed42", folder)
    for name in ("config.json", "model.safetensors"):
        (folder / "model" / name).write_text("{}")
    (folder / "card.json").write_text("{}")
    jobs = {"teacher_kv": 2, "teacher_index": 1, "map": 1, "train": 1}
    assert planned(study, target) == jobs
    snakemake(study, "--quiet", "all", "--", target)
    assert planned(study, target) == {}
    (folder / "model/model.safetensors").write_text("{ }")
    assert planned(study, target) == jobs
    (folder / "card.json").unlink()
    code, said = ended(study, "-n", "--configfile", "study.yaml")
    assert code != 0
    assert "teachers.models.trained.study: arm 'sft', seed 42 of study 'before' is not finished" in said


def test_a_wrong_config_is_one_message_and_no_traceback(study):
    change_config(study, arms={"fixed": {"kv": {"fusion": {"strategy": "fxed"}}}})
    code, said = ended(study, "-n", "--configfile", "study.yaml")
    assert code != 0
    assert "arms.fixed.kv.fusion.strategy" in said
    assert "Traceback" not in said


def test_one_job_for_each_dataset_when_asked_for(study):
    shutil.rmtree(study / "results")
    shutil.rmtree(study / ".snakemake")
    change_config(study, evaluation={"jobs": "per_dataset"})
    target = "results/pocket/scores/raw/seed42/pocket_gsm8k.json"
    assert planned(study, target) == {"data": 1, "predict": 1, "score": 1}
    counts = planned(study, "all")
    assert counts["predict"] == counts["score"] == 30


def test_snakemake_does_not_look_at_waiting_jobs_again_and_again(finished, tmp_path):
    """Its limit of jobs per second starts a timer at every look, and the timer another look: without an end, and more with each job."""
    folder = tmp_path / "again"
    shutil.copytree(finished, folder, symlinks=True, ignore=shutil.ignore_patterns("results", ".snakemake"))
    told = ["--cores", "2", "--configfile", "study.yaml", "--quiet", "all", "--", "all"]
    code, said = ended(folder, *told, main="copied:counting_timers")
    assert code == 0, said
    assert "timers: 0\n" in said
