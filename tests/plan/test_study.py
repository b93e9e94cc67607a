"""Plans of a small finished study, whose jobs really ran (with scripts that only make files), against Snakemake's own dry run.

What is changed is changed in a copy. The command runs in a process of its own where the code of the package is what changes.
"""

import asyncio
import base64
import json
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from copied import ended, started
from typer.testing import CliRunner

from mtkv.cli import app
from mtkv.config.study import read_study
from mtkv.ops.cost_model.past_runs import card_of, config_digest
from mtkv.ops.doctor import space
from mtkv.ops.doctor.checks import DoctorContext
from mtkv.ops.plan.explain import explain
from mtkv.ops.plan.plan import make_plan
from mtkv.ops.planned_jobs import Change
from mtkv.ops.rerun_reasons import code_change
from mtkv.ops.snakemake_dag import PlanError, Profile, ProfileError, dry_run, read_profile
from mtkv.provenance import code_digest as code
from mtkv.provenance.code_digest import Covered

REPOSITORY = Path(__file__).parents[2]
KEPT = ("sft", "single")
TARGET = "results/pocket/scores/single/seed42/pocket_gsm8k.json"
MAKE = """import pathlib
from mtkv.provenance.card import Card
for output in snakemake.output:
    path = pathlib.Path(output)
    path.mkdir(parents=True, exist_ok=True) if not path.suffix else path.touch()
    if not path.suffix:
        (path / "weights").write_text(str(path))
if "card" in snakemake.output.keys():
    with Card.for_job(snakemake, snakemake.rule) as card:
        card.result = {}
"""


def small(**changes):
    """Two arms, one seed, two datasets, no claims."""
    whole = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text(encoding="utf-8"))
    gone = {name: None for name in whole["arms"] if name not in KEPT}
    study = {
        "seeds": [42],
        "datasets": ["pocket_gsm8k", "pocket_cmmlu"],
        "arms": gone | changes.pop("arms", {}),
        "claims": dict.fromkeys(whole["claims"]),
        "teachers": {"shards": 1},
        "comparison": {"baseline": "sft"},
    }
    return study | changes


SNAKEMAKE = ("--cores", "2", "--configfile", "study.yaml")


def listing(folder):
    """Every file and folder with its size and time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts:
            facts = path.lstat()
            found[str(path.relative_to(folder))] = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    return found


@contextmanager
def package_of(folder):
    """Inside, code digests are those of the package in this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "PACKAGE_FOLDER", folder / "src/mtkv")
        code.forget()
        yield
    code.forget()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of the finished study, a git repository; while it ran, it was planned."""
    folder = tmp_path_factory.mktemp("planned") / "study"
    folder.mkdir()
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("workflow", "config", "src", "profiles"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for script in (folder / "workflow/scripts").iterdir():
        script.write_text(MAKE)
    (folder / "study.yaml").write_text(yaml.safe_dump(small()))
    git = ("git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@y")
    (folder / ".gitignore").write_text("results\n.snakemake\n__pycache__\n")
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "study")):
        subprocess.run([*git, *arguments], check=True)
    with package_of(folder):  # whatever becomes of the repository
        _run_and_plan(folder)
        yield folder


def _run_and_plan(folder):
    words = folder / ".snakemake.out"
    running = started(folder, words, *SNAKEMAKE, "--", "all")
    locks = folder / ".snakemake/locks"
    while running.is_alive() and not (locks.is_dir() and any(locks.iterdir())):
        time.sleep(0.02)
    (folder / "meanwhile").write_text(str(len([job for job in planned(folder) if job.runs])))
    running.join()
    assert running.exitcode == 0, words.read_text()


@pytest.fixture
def study(finished, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(finished, tmp_path / "study", symlinks=True)
    return tmp_path / "study"


def change(study, **changes):
    (study / "study.yaml").write_text(yaml.safe_dump(small(**changes)))


def planned(study, *targets, **more):
    return dry_run(targets, [study / "study.yaml"], Profile(slots=2), study, **more).jobs


def why(jobs):
    """Rules that run for causes of their own, and what those are."""
    return {
        job.label: [cause.kind for cause in job.causes if not cause.derived]
        for job in jobs
        if job.runs and any(not cause.derived for cause in job.causes)
    }


def counts(jobs):
    rules = [job.rule for job in jobs if job.runs]
    return {rule: rules.count(rule) for rule in rules}


def counts_of_snakemake(study, *arguments):
    _, said = ended(study, *SNAKEMAKE, "--dry-run", "--quiet", "rules", "--", *arguments)
    table = re.search(r"^job +count\n-+ +-+\n(.*?)^total", said, re.MULTILINE | re.DOTALL)
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table[1], re.MULTILINE) if name != "all"}


def command(study, *arguments):
    """`mtkv plan` as a user types it, with the copy's own package."""
    options = ["plan", "--configfile", "study.yaml", *arguments]
    code, said = ended(study, *options, main="mtkv.cli:app", COLUMNS="250")
    assert code == 0, said
    return said


def test_nothing_runs_and_nothing_is_written(study):
    before = listing(study)
    assert why(planned(study)) == {}
    assert listing(study) == before
    shutil.rmtree(study / ".snakemake")
    shutil.rmtree(study / "results")
    assert all(kinds == ["new"] for kinds in why(planned(study)).values())
    assert not (study / ".snakemake").exists()
    assert not (study / "results").exists()


def test_a_running_study_can_be_planned(finished):
    assert int((finished / "meanwhile").read_text()) > 0


def test_a_changed_field_is_named_with_both_values(study):
    change(study, arms={"single": {"kv": {"loss": {"lambda_v": 0.25}}}})
    jobs = planned(study)
    assert counts(jobs) == counts_of_snakemake(study)
    assert why(jobs) == {"train single 42": ["config"], "compare": ["config"], "report": ["config"]}
    (first, *_) = explain(planned(study, TARGET), TARGET, study)
    assert first.sentences == ("config: arm.kv.loss.lambda_v: 10.0 → 0.25",)
    assert [job.label for job in first.chain] == ["train single 42", "predict single 42", "score single 42"]


def test_an_added_arm_is_new_and_a_lost_file_is_missing(study):
    change(study, arms={"other": {"extends": "single", "kv": {"loss": {"lambda_k": 0.5}}}})
    (study / "results/pocket/predictions/sft/seed42/pocket_gsm8k.parquet").unlink()
    (study / "results/pocket/scores/sft/seed42/pocket_gsm8k.json").unlink()
    jobs = planned(study)
    assert counts(jobs) == counts_of_snakemake(study)
    assert why(jobs) == {
        "train other 42": ["new"],
        "predict other 42": ["new"],
        "score other 42": ["new"],
        "predict sft 42": ["missing"],
        "score sft 42": ["missing"],
        "compare": ["config", "input"],
        "report": ["config", "input"],
    }


def test_a_changed_input_is_named_with_both_digests(study):
    train = study / "results/pocket/data/train.parquet"
    train.write_text("other rows")
    assert {"train sft 42", "train single 42"} <= set(why(planned(study)))
    found = {entry.job.label: entry.sentences for entry in explain(planned(study, TARGET), TARGET, study)}
    empty = "e3b0c44298fc"  # sha256 of nothing
    now = subprocess.run(["sha256sum", train], capture_output=True, text=True, check=True).stdout[:12]
    expected = f"input: results/pocket/data/train.parquet changed: sha256 {empty} → {now}"
    assert expected in found["train single 42"]


@pytest.fixture
def copy(finished, tmp_path):
    """What `cp -r` makes of the finished study, where the files that jobs read got their times after those that they wrote."""
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished, folder], check=True)
    time.sleep(0.1)  # the clock of a file system may have steps of some milliseconds
    for path in [*folder.glob("results/pocket/arms/*/*/model/*"), folder / "workflow/scripts/train.py"]:
        path.touch()
    return folder


def said_of(folder):
    config = read_study(folder / "config/config.yaml", folder / "study.yaml")
    with package_of(folder):
        return make_plan(config, [folder / "study.yaml"], folder=folder).copied


def contents(folder):
    return {str(path): path.read_bytes() for path in sorted((folder / "results").rglob("*")) if path.is_file()}


def test_a_copy_is_recognised_and_the_command_it_is_told_mends_it(copy):
    assert {"train", "predict"} <= counts(planned(copy)).keys()
    said = said_of(copy)
    assert said.startswith("only the times of files differ, their contents are those of the cards")
    before = contents(copy)
    command = re.search("`(.*)`", said)[1].split()
    assert command[0] == "snakemake"
    assert ended(copy, *command[1:])[0] == 0
    assert counts(planned(copy)) == {}
    assert contents(copy) == before
    assert said_of(copy) == ""


def test_a_copy_is_shown_first_and_doctor_says_it_too(copy):
    lines = command(copy, "--json", "plan.json").splitlines()
    assert lines[0].startswith("= only the times of files differ")
    assert lines[0] == f"= {json.loads((copy / 'plan.json').read_text())['copied']}"
    context = DoctorContext(
        read_study(copy / "config/config.yaml", copy / "study.yaml"), copy, None, (copy / "study.yaml",)
    )
    with package_of(copy):
        found = [(finding.level, finding.fix) for finding in space.plan(context)]
    assert ("warning", f"do not run, `snakemake --touch --cores 1 all --configfile {copy / 'study.yaml'}`") in found


def test_what_differs_in_more_than_times_is_no_copy(copy):
    weights = copy / "results/pocket/arms/sft/seed42/model/weights"
    before = weights.read_bytes()
    weights.write_bytes(before[::-1])
    assert said_of(copy) == ""
    weights.write_bytes(before)
    assert "contents are those of the cards" in said_of(copy)
    script = copy / "workflow/scripts/train.py"
    text = script.read_text(encoding="utf-8")
    script.write_text(f"{text}# a remark\n", encoding="utf-8")
    assert said_of(copy) == ""
    script.write_text(text, encoding="utf-8")
    (copy / "results/pocket/scores/sft/seed42/pocket_gsm8k.json").unlink()
    assert said_of(copy) == ""


def test_another_config_is_no_copy(copy):
    change(copy, arms={"single": {"kv": {"loss": {"lambda_v": 0.25}}}})
    assert said_of(copy) == ""
    shutil.rmtree(copy / ".snakemake")
    assert said_of(copy) == ""
    change(copy)
    assert "not compared: the settings of score " in said_of(copy)  # all others have cards, and those are right


def test_what_cannot_be_compared_is_named(copy, monkeypatch):
    def dirty(folder, path):  # the run's tree had changes of its own, of which no revision tells
        card = card_of(folder, path)
        return card and card | {"git": card["git"] | {"dirty": True}}

    monkeypatch.setattr("mtkv.ops.plan.explain.card_of", dirty)
    assert said_of(copy).startswith(
        "only the times of files say that anything has to run; not compared: workflow/scripts/train.py; if this is a copy"
    )
    monkeypatch.setattr("mtkv.ops.plan.explain.MOST", 10)
    assert re.search(r"not compared: \d+\.\d kB of inputs; if this is a copy", said_of(copy))


def test_what_a_killed_job_left_is_incomplete(study):
    name = "results/pocket/scores/sft/seed42/pocket_gsm8k.json"
    marker = study / ".snakemake/incomplete" / base64.urlsafe_b64encode(name.encode()).decode()
    marker.write_text('{"external_jobid": null}')
    assert why(planned(study)) == {"score sft 42": ["incomplete"]}


def test_changed_code_is_named_since_the_cards_revision(study):
    losses = study / "src/mtkv/distill/kv_distance.py"
    text = losses.read_text(encoding="utf-8")
    assert "\ndef " in text
    losses.write_text(text.replace("\ndef ", "\nUNUSED = 1\n\n\ndef ", 1), encoding="utf-8")
    comment = study / "src/mtkv/distill/layer_schedule.py"
    comment.write_text(comment.read_text(encoding="utf-8") + "\n# a remark\n", encoding="utf-8")
    report = study / "src/mtkv/stages/report.py"
    report.write_text(
        report.read_text(encoding="utf-8").replace("\ndef ", "\nUNUSED = 1\n\n\ndef ", 1), encoding="utf-8"
    )
    said = command(study, "--explain", TARGET, "--json", "why.json")
    revision = subprocess.run(["git", "-C", study, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert f"code: mtkv.distill.kv_distance differs since {revision.stdout[:8]}" in said
    assert "mtkv.distill.layer_schedule" not in said
    assert "mtkv.report" not in said
    (entry,) = json.loads((study / "why.json").read_text())["explained"]
    assert entry["chain"] == ["train single 42", "predict single 42", "score single 42"]
    whole = command(study)
    assert re.search(r"│ train +│ +2/2 │ code", whole)
    assert re.search(r"│ teacher_kv +│", whole) is None


def test_a_changed_pin_is_named(study):
    lock = study / "requirements.lock"
    text = lock.read_text(encoding="utf-8")
    old = re.search(r"^scipy==.*$", text, re.MULTILINE)[0]
    lock.write_text(text.replace(old, "scipy==99.0"), encoding="utf-8")
    package = study / "src/mtkv"
    revision = subprocess.run(["git", "-C", study, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    compare = Covered(("mtkv.stages.compare",), ())
    found = code_change(compare, revision.stdout.strip(), False, package)
    assert found.pins == (Change("scipy", old, "scipy==99.0"),)
    assert code_change(Covered(("mtkv.data.answers",), ()), revision.stdout.strip(), False, package).pins == ()
    assert "not in this checkout" in code_change(compare, "0" * 40, False, package).note
    assert "uncommitted" in code_change(compare, revision.stdout.strip(), True, package).note
    assert "no git revision" in code_change(compare, None, None, package).note


def test_times_are_those_of_the_finished_jobs(study):
    shutil.rmtree(study / "results/pocket/scores")
    config = read_study(study / "config/config.yaml", study / "study.yaml")
    plan = make_plan(config, [study / "study.yaml"], ["scores"], folder=study)
    records = [json.loads(path.read_text()) for path in (study / ".snakemake/metadata").rglob("*") if path.is_file()]
    spent = {tuple(r["params"]): r["endtime"] - r["starttime"] for r in records if r["rule"] == "score"}
    for job in plan.jobs:
        if job.card:
            card = json.loads((study / job.card).read_text())
            assert config_digest(job.params) == card["config_digest"], job.label
    stage = next(stage for stage in plan.stages if stage.rule == "score")
    assert (stage.running, stage.kinds) == (2, {"missing": 2})
    assert set(stage.basis) == {"measured"}
    assert min(spent.values()) * 2 * 0.5 <= stage.seconds <= 2 * max(r["endtime"] - r["starttime"] for r in records)
    assert plan.critical_seconds <= plan.total_seconds <= sum(stage.seconds for stage in plan.stages) + 1e-6


@pytest.fixture
def run(study, monkeypatch):
    monkeypatch.chdir(study)

    def invoke(*arguments):
        options = ["plan", "--configfile", "study.yaml", *map(str, arguments)]
        return CliRunner().invoke(app, options, env={"COLUMNS": "200"})

    return invoke


def test_a_full_disk_is_said_before_all_else(run, study, monkeypatch):
    change(study, arms={"sft": {"training": {"learning_rate": 1.0e-3}}})
    usage = shutil.disk_usage(study)
    monkeypatch.setattr("mtkv.ops.plan.plan.shutil.disk_usage", lambda path: usage._replace(free=1000))
    said = run().output
    assert said.startswith("! disk of ")
    assert "1.0 kB are free" in said


def test_the_plan_as_json_has_every_job(run, study):
    change(study, arms={"single": {"training": {"steps": 300}}})
    result = run("--json", "plan.json", "--each")
    assert result.exit_code == 0, result.output
    found = json.loads((study / "plan.json").read_text())
    (train,) = [job for job in found["jobs"] if job["rule"] == "train"]
    assert train["causes"][0]["changes"] == [{"path": "arm.training.steps", "old": 150, "new": 300}]
    assert train["basis"] == "scaled"
    assert found["total_seconds"] == pytest.approx(found["critical_seconds"])  # one chain
    for job in found["jobs"]:
        assert " ".join([job["rule"], *job["wildcards"].values()]) in result.output


def test_what_is_up_to_date_is_said(run):
    assert "Nothing to be done" in run().output
    assert "is up to date" in run("--explain", TARGET).output


def test_wrong_targets_profiles_and_configs_end_in_a_message(run, study):
    for arguments, said in (
        (("results/pocket/scores/fxed/seed42/pocket_gsm8k.json",), "fxed"),
        (("--gpu", "abacus"), "abacus"),
        (("--profile", "profiles/none"), "no config.yaml"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert said in result.output
        assert "Traceback" not in result.output
    change(study, arms={"single": {"kv": {"fusion": {"strategy": "fxed"}}}})
    result = run()
    assert result.exit_code == 2
    assert "arms.single.kv.fusion.strategy" in result.output


def test_profiles_give_slots_and_resources(study, monkeypatch):
    monkeypatch.chdir(study)
    folder = study / "profiles/two"
    folder.mkdir()
    (folder / "config.yaml").write_text("cores: 1\nset-resources: {train: {runtime: 7}}\nresources: [gpu=1]\n")
    profile = read_profile(folder)
    assert (profile.slots, profile.remote, profile.limits) == (1, False, {"gpu": 1})
    assert read_profile(folder, slots=5).slots == 5
    jobs = dry_run((), [study / "study.yaml"], profile, study).jobs
    assert {job.resources["runtime"] for job in jobs if job.rule == "train"} == {7}
    (folder / "config.yaml").write_text("executor: unheard-of\n")
    with pytest.raises(ProfileError, match="unheard"):
        read_profile(folder)


def test_targets_that_nothing_makes_are_an_error(study):
    with pytest.raises(PlanError, match=r"nothing\.json"):
        planned(study, "results/nothing.json")


def test_it_works_where_an_event_loop_is_running(study):
    """As in a notebook, and after a browser's test in this very process."""

    async def inside():
        return planned(study)

    with ThreadPoolExecutor(1) as pool:  # this thread may have a loop already
        jobs = pool.submit(lambda: asyncio.run(inside())).result()
    found, expected = ({(job.rule, job.outputs) for job in each} for each in (jobs, planned(study)))
    assert found == expected != set()
