"""Python, packages, GPUs, memory and folders: each fault simulated, and this machine as it is."""

import email.message
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mtkv.ops.doctor import gpus, packages, space
from mtkv.ops.doctor.packages import locked, other_versions
from mtkv.ops.doctor.space import Measured, file_system, measure

GPU = {"resources": {"train": {"gpu": 1}}}
H100 = "NVIDIA H100 80GB HBM3, 81559, 81000, 550.54.15, 9.0"
V100 = "Tesla V100-SXM2-16GB, 16384, 16000, 470.82.01, 7.0"
HEADING = "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: {cuda}  |"


def levels(found):
    return [level for level, _, _ in found]


def test_python_as_declared(clinic, monkeypatch):
    assert levels(clinic.findings("python")) == ["ok"]
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.9.2")
    ((level, message, _),) = clinic.findings("python")
    assert level == "error"
    assert "3.9.2" in message
    assert ">=3.11" in message


def test_versions_other_than_locked_are_named(clinic):
    there = importlib.metadata.version("numpy")
    (clinic.folder / "requirements.lock").write_text(f"# why\nnumpy=={there}\nSciPy==0.0.1  # old\nnot-here==1.0\n")
    ((level, message, fix),) = clinic.findings("packages")
    assert level == "warning"
    assert f"scipy {importlib.metadata.version('scipy')} (locked: 0.0.1)" in message
    assert "numpy" not in message
    assert "not-here" not in message
    assert "requirements.lock" in fix


def test_a_local_part_of_a_version_does_not_count(monkeypatch):
    monkeypatch.setattr(packages, "installed", {"torch": "2.13.0+cu128", "numpy": "2.4.7"}.get)
    assert other_versions({"torch": "2.13.0", "numpy": "2.4.6", "absent": "1"}) == ["numpy 2.4.7 (locked: 2.4.6)"]


# Every sign that can stand in a path here, and a few letters beyond ASCII.
SIGNS = [chr(code) for code in range(32, 127) if chr(code) != "/"] + ["\t", "甲", "é"]


def survives_a_shell(name, folder):
    """What bash makes of a word without quotes, beside a file that it might match."""
    (folder / "aXb").touch()
    done = subprocess.run(["bash", "-c", f"printf %s {name}"], cwd=folder, capture_output=True, text=True)
    return (done.returncode, done.stdout, done.stderr) == (0, name, "")


def test_paths_that_a_shell_does_not_leave_alone_are_named(tmp_path):
    refused = {sign for sign in SIGNS if packages.path_problem(f"/home/a{sign}b/.venv/bin/python")}
    assert refused == {sign for sign in SIGNS if not survives_a_shell(f"a{sign}b", tmp_path)}


@pytest.mark.parametrize("sign", [sign for sign in SIGNS if packages.path_problem(sign)] + ["+", "甲", "#"])
def test_make_refuses_such_a_path_in_one_line_before_it_installs(tmp_path, sign):
    folder = tmp_path / f"a{sign}b"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(Path(__file__).parents[2] / name, folder)
    # A make that runs the tests tells its children so, and they would say which folder they enter.
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "--dry-run", "study"], cwd=folder, capture_output=True, text=True, env=alone)
    if packages.path_problem(sign):
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert f'mtkv cannot run in "{folder}"' in done.stderr
        assert "move the folder" in done.stderr
    else:
        assert (done.returncode, "pip install" in done.stdout) == (0, True)


def test_doctor_and_snakemake_refuse_such_a_path(clinic, tmp_path, monkeypatch):
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    repository = Path(__file__).parents[2]
    program = f"import sys; sys.executable = {str(folder / 'python')!r}; from snakemake.cli import main; main()"
    command = [sys.executable, "-c", program, "--snakefile", str(repository / "Snakefile"), "--dry-run", "--cores", "1"]
    shutil.copytree(repository / "config", tmp_path / "config")
    environment = {"PYTHONPATH": str(repository / "src"), "PATH": os.defpath}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert f"{folder / 'python'}: every job would die of ' ' in the path of its Python; move" in said
    assert "Traceback" not in said
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    assert clinic.findings("python")[0][:2] == (
        "error",
        f"{folder / 'python'}: every job would die of ' ' in the path of its Python",
    )


def test_every_pin_of_this_repository_is_read():
    lock = Path(__file__).parents[2] / "requirements.lock"
    names = re.findall(r"^([A-Za-z0-9._-]+)==\S+", lock.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(locked(lock)) == {re.sub(r"[._]", "-", name).lower() for name in names}
    assert len(names) > 100


@pytest.mark.parametrize("extra", ["", "dev", "slurm", "lora", "gguf"])
def test_the_lock_file_holds_what_pyproject_asks_for(extra):
    repository = Path(__file__).parents[2]
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (repository / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = {need.name: need for need in map(Requirement, filter(str.strip, (line.split("#")[0] for line in lines)))}
    pins = {canonicalize_name(name): next(iter(pin.specifier)).version for name, pin in pins.items()}
    for text in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        need = Requirement(text)
        assert pins[canonicalize_name(need.name)] in need.specifier, text


@pytest.fixture
def installed_only(monkeypatch, tmp_path):
    """mtkv as a wheel installs it, without its checkout, with these requirements."""
    needs = ["numpy>=99", "no-such-thing>=1", "pytest", "gone; python_version < '3'", "extra-only; extra == 'vllm'"]
    facts = email.message.Message()
    facts["Requires-Python"], facts["Provides-Extra"] = ">=3.99", "vllm"
    monkeypatch.setattr(packages, "PACKAGE_FOLDER", tmp_path / "lib/site-packages/mtkv")
    monkeypatch.setattr(packages, "requires", lambda name: needs)
    monkeypatch.setattr(packages, "metadata", lambda name: facts)


def test_a_missing_or_old_package_stops_the_study(clinic, installed_only):
    found = clinic.findings("packages")
    assert found[0][0] == "error"
    assert f"numpy>=99 (installed: {importlib.metadata.version('numpy')})" in found[0][1]
    assert "no-such-thing (not installed)" in found[0][1]
    assert not {"extra-only", "gone", "pytest"} & set(re.findall(r"[\w-]+", found[0][1]))
    ((level, message, fix),) = clinic.findings("extras", {"evaluation": {"backend": "vllm"}})
    assert (level, fix) == ("error", "pip install 'mtkv[vllm]'")
    assert message == "evaluation.backend vllm needs extra-only (not installed)"
    assert levels(clinic.findings("python")) == ["error"]


def test_the_checkout_declares_what_its_metadata_would():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project = packages.tomllib.loads(text)["project"]
    found = packages.declared().extras
    assert [str(need) for need in found[""]] == [str(Requirement(need)) for need in project["dependencies"]]
    assert {"lora", "vllm", "slurm", "dev"} <= set(found)


def test_extras_are_asked_for_by_what_needs_them(clinic, monkeypatch, slurm):
    assert clinic.findings("extras") == []
    assert levels(clinic.findings("extras", profile=slurm)) == ["ok"]
    overlay = {"evaluation": {"backend": "vllm"}, "arms": {"sft": {"training": {"lora": {"rank": 4}}}}}
    monkeypatch.setattr(packages, "installed", lambda name: None)
    found = clinic.findings("extras", overlay)
    assert {fix for _, _, fix in found} == {"pip install 'mtkv[lora]'", "pip install 'mtkv[vllm]'"}
    assert any("arms.sft.training.lora" in message and "peft (not installed)" in message for _, message, _ in found)


def test_no_gpu_matters_only_to_studies_that_ask_for_one(clinic, slurm):
    assert levels(clinic.findings("cuda")) == ["ok"]
    ((level, message, fix),) = clinic.findings("cuda", GPU)
    assert (level, "train" in message, "profiles/slurm" in fix) == ("warning", True, True)
    assert levels(clinic.findings("cuda", GPU, slurm)) == ["ok"]


@pytest.mark.parametrize(
    ("built", "driver", "expected"),
    [("12.8", "12.4", "ok"), ("12.8", "13.0", "ok"), ("12.8", "11.4", "error"), (None, "12.4", "error")],
)
def test_the_driver_must_know_torchs_cuda(clinic, monkeypatch, built, driver, expected):
    """Within one major version CUDA is compatible, and older builds run on newer drivers."""
    clinic.program("nvidia-smi", HEADING.format(cuda=driver) if driver else "")
    monkeypatch.setattr(gpus, "torch_cuda", lambda: built)
    monkeypatch.setattr(gpus, "gpus", lambda: [gpus.Gpu("H100", 81559, 81000, "550", 9.0)])
    assert levels(clinic.findings("cuda")) == [expected]


def test_nvidia_smi_is_read(clinic):
    clinic.program("nvidia-smi", f"{H100}\n{V100}\n")
    first, second = gpus.gpus()
    assert (first.name, first.total, first.driver, first.capability) == (
        "NVIDIA H100 80GB HBM3",
        81559,
        "550.54.15",
        9.0,
    )
    assert second.capability == 7.0
    clinic.program("nvidia-smi", "Unable to determine the device handle", code=255)
    assert gpus.gpus() == []
    assert levels(clinic.findings("cuda", GPU)) == ["error"]


def test_bfloat16_on_an_old_gpu_and_more_gpus_than_there_are(clinic, monkeypatch):
    clinic.program("nvidia-smi", V100)
    monkeypatch.setattr(gpus, "torch_cuda", lambda: "12.8")
    found = clinic.findings("cuda", {"student": {"dtype": "bfloat16"}, "resources": {"predict": {"gpu": 2}}})
    assert any(level == "warning" and "bfloat16" in message for level, message, _ in found)
    assert any(level == "error" and "asks for 2 GPUs, here are 1" in message for level, message, _ in found)


def test_torchs_cuda_is_what_torch_says():
    assert gpus.torch_cuda() == torch.version.cuda


def test_memory_and_cores(clinic, monkeypatch, tmp_path):
    assert levels(clinic.findings("memory"))[0] == "ok"
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    assert space.memory_mb() <= here
    (tmp_path / "memory.max").write_text("1500000000\n")
    monkeypatch.setattr(space, "GROUP", str(tmp_path / "memory.max"))
    ((level, message, fix), *_) = clinic.findings("memory")
    assert level == "warning"
    assert "1,500 MB" in message
    assert "mem_mb" in fix


def test_a_full_disk_or_one_without_room_for_files(clinic, monkeypatch):
    assert levels(clinic.findings("disk")) == ["ok"]
    facts = namedtuple("facts", "f_bavail f_frsize f_files f_favail")
    monkeypatch.setattr(space.os, "statvfs", lambda place: facts(100, 4096, 10**6, 10**6))
    assert levels(clinic.findings("disk")) == ["error"]
    monkeypatch.setattr(space.os, "statvfs", lambda place: facts(10**9, 4096, 10**6, 12))
    assert levels(clinic.findings("disk")) == ["warning"]
    monkeypatch.setattr(
        space.os, "statvfs", lambda place: facts(10**9, 4096, 0, 0)
    )  # file systems without a fixed number
    assert levels(clinic.findings("disk")) == ["ok"]


def test_folders_are_tried_and_left_as_they_were(clinic):
    (clinic.folder / "results").mkdir()
    before = sorted(clinic.folder.rglob("*"))
    assert levels(clinic.findings("folders")) == ["ok"] * 3
    assert sorted(clinic.folder.rglob("*")) == before


def test_a_folder_that_cannot_be_written(clinic, monkeypatch):
    real = space.measure

    def read_only(place):
        if place.name == "checkpoints":
            raise PermissionError(13, "Permission denied")
        return real(place)

    (clinic.folder / "checkpoints").mkdir()
    monkeypatch.setattr(space, "measure", read_only)
    found = clinic.findings("folders")
    assert [(level, "checkpoints/: Permission denied" in message) for level, message, _ in found if level != "ok"] == [
        ("error", True)
    ]


def test_a_folder_where_links_are_not_exclusive(tmp_path, monkeypatch):
    monkeypatch.setattr(space.os, "link", lambda first, second: None)
    with pytest.raises(OSError, match="not exclusive"):
        measure(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (Measured(0.001, 0.01, 0.1), ["ok"]),
        (Measured(0.2, 0.01, 0.0), ["warning"]),
        (Measured(0.001, 3.0, 0.0), ["warning"]),
        (Measured(0.001, 0.01, -5.0), ["ok", "warning"]),
        (Measured(0.001, 0.01, 90.0), ["ok", "error"]),
    ],
)
def test_slow_storage_and_skewed_clocks(clinic, monkeypatch, measured, expected):
    monkeypatch.setattr(space, "measure", lambda place: measured)
    assert levels(clinic.findings("folders")) == expected * 3


def test_skew_is_measured_against_the_file_servers_clock(tmp_path, monkeypatch):
    real = space.time.time
    monkeypatch.setattr(space.time, "time", lambda: real() - 100)
    assert measure(tmp_path).skew == pytest.approx(100, abs=2)


def test_the_file_system_is_the_one_mounted_nearest(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text("a / ext4 rw 0 0\nb /home nfs4 rw 0 0\nc /home/me/fast tmpfs rw 0 0\n")
    found = [file_system(Path(place), mounts) for place in ("/homework", "/home/me", "/home/me/fast/x")]
    assert found == ["ext4", "nfs4", "tmpfs"]
    assert file_system(tmp_path, tmp_path / "absent") == ""


def test_a_cluster_needs_shared_storage(clinic, monkeypatch, slurm):
    assert clinic.findings("shared storage") == []
    monkeypatch.setattr(space, "file_system", lambda place: "xfs")
    assert levels(clinic.findings("shared storage", profile=slurm)) == ["warning"]
    monkeypatch.setattr(space, "file_system", lambda place: "lustre")
    assert levels(clinic.findings("shared storage", profile=slurm)) == ["ok"]


def test_a_lock_that_a_killed_snakemake_left(clinic):
    assert levels(clinic.findings("snakemake")) == ["ok"]
    lock = clinic.folder / ".snakemake/locks/0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("x\n")
    ((level, _, fix),) = clinic.findings("snakemake")
    assert (level, "--unlock" in fix) == ("error", True)
    log = clinic.folder / ".snakemake/log/2026.snakemake.log"
    log.parent.mkdir()
    log.write_text("  Host: another-login\n")
    assert levels(clinic.findings("snakemake")) == ["warning"]
    log.write_text(f"  Host: {socket.gethostname()}\n")
    waiting = [sys.executable, "-c", "import sys, time; print('up', flush=True); time.sleep(60)", "-m", "snakemake"]
    process = subprocess.Popen(waiting, cwd=clinic.folder, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        assert levels(clinic.findings("snakemake")) == ["note"]
    finally:
        process.kill()
        process.wait()
