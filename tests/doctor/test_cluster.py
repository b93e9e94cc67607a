"""SLURM, GPU memory and the plan: partitions, types and accounts of a cluster that programs on PATH pretend; and the command."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from copied import ended

from mtkv.ops.doctor import gpus, space
from mtkv.ops.doctor.checks import DoctorContext, Finding
from mtkv.ops.doctor.cluster import COMMANDS, sinfo_lines
from mtkv.ops.doctor.command import CHECKS, run_checks
from mtkv.ops.doctor.gpus import memory_of, shape_of, training_gb
from mtkv.ops.snakemake_dag import PlanError

REPOSITORY = Path(__file__).parents[2]
GPU = {"resources": {"train": {"gpu": 1}}}
SINFO = """gpu*|up|gpu:a100:4(S:0-1)|idle
gpu*|up|gpu:h100:8(S:0,1),nvme:1|mixed
cpu|up|(null)|allocated
old|up|gpu:2|drained*
night|down|gpu:v100:4|idle"""


def levels(found):
    return [level for level, _, _ in found]


@pytest.fixture
def site(clinic, slurm):
    """Writes the site file of a cluster that answers."""
    for name in COMMANDS:
        clinic.program(name)
    clinic.program("sinfo", SINFO)

    def write(**settings):
        path = clinic.folder / "profiles/slurm/site.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(settings))
        return slurm

    return write


def test_without_a_profile_slurm_is_not_asked_for(clinic):
    assert clinic.findings("slurm") == []


def test_commands_that_are_missing(clinic, slurm):
    ((level, message, _),) = clinic.findings("slurm", profile=slurm)
    assert (level, message) == ("error", "no sbatch, squeue, scancel, sinfo, scontrol on this machine")


def test_a_controller_that_does_not_answer(clinic, site):
    clinic.program("sinfo", code=1, error="slurm_load_partitions: Unable to contact slurm controller")
    ((level, message, _),) = clinic.findings("slurm", profile=site())
    assert (level, "Unable to contact" in message) == ("error", True)


def test_partitions_types_and_accounts_that_exist(clinic, site):
    clinic.program("sacctmgr", "lab\nteaching")
    profile = site(partitions={"gpu": {"max_gpu": 8}, "cpu": {}}, gpu_model="h100", account="lab")
    found = clinic.findings("slurm", GPU, profile)
    assert found == [("ok", "partitions cpu, gpu", ""), ("ok", "GPUs: a100, h100", "")]


@pytest.mark.parametrize(
    ("settings", "level", "words"),
    [
        ({"partitions": {"gpus": {}}}, "error", "partition gpus is not one of this cluster's: cpu, gpu, night, old"),
        ({"partitions": {"night": {}, "gpu": {}}}, "warning", "night takes no jobs now"),
        ({"partitions": {"old": {}, "gpu": {}}}, "warning", "old takes no jobs now"),
        ({"partitions": {"gpu": {}}, "gpu_model": "h200"}, "error", "gpu_model h200: the partitions have a100, h100"),
        (
            {"partitions": {"old": {}}, "gpu_model": "a100"},
            "error",
            "gpu_model a100: the partitions have GPUs without a type",
        ),
        ({"partitions": {"cpu": {}}}, "error", "no node of these partitions has any"),
        ({"account": "rich"}, "error", "account rich is not one of yours: lab, teaching"),
        ({}, "note", "you have several accounts (lab, teaching)"),
        ({}, "note", "default partition; it has cpu, gpu, night, old"),
    ],
)
def test_what_the_site_file_names_must_exist(clinic, site, settings, level, words):
    clinic.program("sacctmgr", "lab\nteaching\nlab")
    found = clinic.findings("slurm", GPU, site(**settings))
    assert [(level, True)] == [(kind, words in message) for kind, message, _ in found if words in message], found


def test_an_account_that_cannot_be_looked_up(clinic, site):
    clinic.program("sacctmgr", code=1)
    found = clinic.findings("slurm", profile=site(account="lab"))
    assert [(level, "does not tell" in message) for level, message, _ in found if "account" in message] == [
        ("note", True)
    ]


def test_sinfos_lines():
    first, second, third, fourth, fifth = sinfo_lines(SINFO)
    assert (first.partition, first.gpu_types, first.gpus, first.usable) == ("gpu", {"a100"}, 4, True)
    assert (second.gpu_types, second.gpus) == ({"h100"}, 8)
    assert (third.gpus, third.usable) == (0, True)
    assert (fourth.gpu_types, fourth.gpus, fourth.usable) == (set(), 2, False)
    assert (fifth.up, fifth.usable) == (False, True)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("a100", 40),
        ("a100_80gb", 80),
        ("nvidia_a100 a100-80g", 80),
        ("gh200", 96),
        ("h200", 141),
        ("l40s", 48),
        ("l4", 24),
        ("t4", 16),
        ("rtx4090", 24),
        ("mystery", 0),
    ],
)
def test_memory_by_the_name_of_a_type(name, size):
    assert memory_of(name) == size


def test_training_memory_is_the_stated_sum(clinic):
    """By hand: what torch holds after a step of the pocket student in float32, and the activations of the formula."""
    import torch

    from mtkv.models.load import load_model

    study = clinic.context().study
    model = load_model(study.student)
    optimizer = torch.optim.AdamW(model.parameters())
    parameters = sum(weight.numel() for weight in model.parameters())
    width, layers, words = model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size
    arm = study.arms["sft"]
    tokens = arm.training.batch_size * arm.training.max_length
    sum(weight.sum() for weight in model.parameters()).backward()
    optimizer.step()
    moments = [x for state in optimizer.state.values() for x in state.values() if x.ndim]
    held = [*model.parameters(), *(weight.grad for weight in model.parameters()), *moments]
    state = sum(x.nbytes for x in held)
    by_hand = state + 2 * 34 * tokens * width * layers + 8 * tokens * words
    assert training_gb(study.student, arm, study.resources.train, []) == pytest.approx(by_hand / 1e9)
    # Saved in bfloat16 it is trained in float32 all the same; autocast makes one copy in bfloat16.
    saved_in_half = study.student.model_copy(update={"dtype": "bfloat16"})
    assert training_gb(saved_in_half, arm, study.resources.train, []) == pytest.approx(by_hand / 1e9)
    in_half = arm.model_copy(update={"training": arm.training.model_copy(update={"dtype": "bfloat16"})})
    by_hand = state + 2 * parameters + 34 * tokens * width * layers + 8 * tokens * words
    assert training_gb(saved_in_half, in_half, study.resources.train, []) == pytest.approx(by_hand / 1e9)


def test_memory_falls_with_adapters_checkpointing_and_more_gpus(clinic):
    def needed(training=None, **resources):
        overlay = {"arms": {"sft": {"training": training or {}}}, "resources": {"train": resources}}
        study = clinic.context(overlay).study
        return training_gb(study.student, study.arms["sft"], study.resources.train, [])

    whole = needed()
    assert needed({"lora": {"rank": 4}}) < whole
    assert needed({"gradient_checkpointing": True}) < whole
    assert needed({"dtype": "bfloat16"}) < whole
    assert needed(gpu=4, strategy="fsdp2") < needed(gpu=4, strategy="zero2") < needed(gpu=4, strategy="ddp") < whole
    assert needed(gpu=4, strategy="zero3") == needed(gpu=4, strategy="fsdp2")


def test_teachers_that_read_along_count(clinic):
    context = clinic.context({"teachers": {"mode": "online"}} | GPU)
    arm = context.study.arms["fixed"]
    assert len(gpus.along(context, arm)) == len(arm.kv.teachers)
    alone = training_gb(context.study.student, arm, context.study.resources.train, [])
    assert training_gb(context.study.student, arm, context.study.resources.train, gpus.along(context, arm)) > alone


def test_a_model_that_is_not_here_is_judged_by_its_name(clinic):
    study = clinic.context({"student": {"source": "hub", "name": "Qwen/Qwen2.5-1.5B-Instruct"}}).study
    found = shape_of(study.student)
    assert found.parameters == 1.5e9
    assert 12 * found.hidden**2 * found.layers == pytest.approx(1.5e9, rel=0.1)
    assert shape_of(study.student.model_copy(update={"name": "owner/mystery"})) is None


@pytest.mark.parametrize(("memory", "expected"), [("81559", "ok"), ("30", "error"), (None, "note")])
def test_gpu_memory_against_the_study(clinic, memory, expected):
    if memory:
        clinic.program("nvidia-smi", f"Some GPU, {memory}, {memory}, 550.1, 9.0")
    found = clinic.findings("gpu memory", GPU)
    assert levels(found) == [expected]
    assert found[0][1].startswith("train ")
    assert clinic.findings("gpu memory") == []


def test_gpu_memory_of_a_cluster_is_by_its_type(clinic, site):
    large = {"student": {"source": "hub", "name": "some/thing-7B", "dtype": "float32"}} | GPU
    assert "error" in levels(clinic.findings("gpu memory", large, site(gpu_model="v100")))
    assert "note" in levels(clinic.findings("gpu memory", large, site()))


class Planned:
    copied = ""
    problems = (
        "disk of /x: 5 TB are needed, 1 TB are free; free some",
        "train fixed 42: too long; raise resources.train.runtime",
    )
    notes = ("not counted: the size of model x is not known until it is fetched",)
    running = jobs = (1, 2)
    written = 5e12


def test_what_the_plan_finds_is_an_error_with_its_remedy(clinic, monkeypatch):
    monkeypatch.setattr("mtkv.ops.plan.plan.make_plan", lambda *_, **__: Planned)
    found = clinic.findings("plan")
    assert found[0] == ("error", "disk of /x: 5 TB are needed, 1 TB are free", "free some")
    assert levels(found) == ["error", "error", "note"]
    assert "5.0 TB" in found[2][1]


def test_a_study_that_snakemake_cannot_plan(clinic, monkeypatch):
    def broken(*_, **__):
        raise PlanError("MissingInputException in rule train")

    monkeypatch.setattr("mtkv.ops.plan.plan.make_plan", broken)
    ((level, message, _),) = clinic.findings("plan")
    assert (level, "MissingInputException" in message) == ("error", True)


def test_a_check_that_fails_keeps_no_other_from_being_made(clinic, monkeypatch):
    monkeypatch.setattr(space, "memory_mb", lambda: 1 / 0)
    found = dict(run_checks(clinic.context(), ["memory", "disk"]))
    assert found["memory"][0].level == "error"
    assert "ZeroDivisionError" in found["memory"][0].message
    assert found["disk"][0].level == "ok"
    broken = DoctorContext(clinic.context().study, clinic.folder, clinic.folder / "no-profile")
    assert "no profile" in dict(run_checks(broken, ["memory"]))["memory"][0].message


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workflow")
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("workflow", "config", "profiles"):
        shutil.copytree(REPOSITORY / name, folder / name)
    return folder


def doctor(folder, *arguments):
    more = {"PYTHONPATH": str(REPOSITORY / "src"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return ended(folder, "doctor", *arguments, main="mtkv.cli:app", **more)


def test_the_pocket_study_can_run_on_this_machine(workflow):
    before = {path for path in workflow.rglob("*") if "__pycache__" not in path.parts}
    code, said = doctor(workflow, "--json", "-")
    found = json.loads(said)
    problems = [line for line in found["findings"] if line["level"] == "error"]
    assert (code, problems, found["good"]) == (0, [], True)
    assert {line["check"] for line in found["findings"]} >= {"python", "packages", "folders", "plan"}
    assert {path for path in workflow.rglob("*") if "__pycache__" not in path.parts} == before


def test_a_study_that_cannot_run_says_how_to_mend_it(workflow, tmp_path):
    code, said = doctor(workflow, "--configfile", "config/studies/qwen2.5.yaml", "--json", str(tmp_path / "found.json"))
    assert code == 1, said
    assert "would not run here" in said
    assert "→ snakemake assets" in said
    assert json.loads((tmp_path / "found.json").read_text())["good"] is False


def test_every_check_is_run_and_documented():
    from mtkv.ops.doctor import assets, cluster, gpus, packages, space

    made = {
        function
        for module in (assets, cluster, gpus, packages, space)
        for function in vars(module).values()
        if getattr(function, "__annotations__", {}).get("return") == Iterator[Finding] and function.__name__[0] != "_"
    }
    assert made == set(CHECKS.values())
    assert all(check.__doc__ for check in CHECKS.values())
