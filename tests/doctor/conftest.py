"""A machine whose programs, packages and folders a test can break."""

import shutil
import stat
from pathlib import Path

import pytest
import yaml

from mtkv.config.study import read_study
from mtkv.ops.doctor.checks import DoctorContext
from mtkv.ops.doctor.command import CHECKS

REPOSITORY = Path(__file__).parents[2]


class Clinic:
    """A folder with `config/` and whatever a test puts there; `bin/` is all of PATH."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        for name in ("which", "sh", "bash"):  # what importing Snakemake's plugins asks for
            (folder / "bin" / name).symlink_to(shutil.which(name))

    def program(self, name, text="", code=0, error="", wait=0):
        """A program on PATH that prints `text`."""
        path = self.folder / "bin" / name
        path.write_text(
            f"#!/bin/sh\n/bin/sleep {wait}\n/bin/cat <<'END'\n{text}\nEND\necho '{error}' >&2\nexit {code}\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IEXEC)

    def context(self, overlay=None, profile=None):
        """The default study with an overlay (a path, or what would be in its file)."""
        if overlay is not None and not isinstance(overlay, Path):
            path = self.folder / "overlay.yaml"
            path.write_text(yaml.safe_dump(overlay), encoding="utf-8")
            overlay = path
        study = read_study(REPOSITORY / "config/config.yaml", *([overlay] if overlay else []))
        return DoctorContext(study, self.folder, profile)

    def findings(self, name, overlay=None, profile=None):
        """(level, message, fix) of one check. Every warning and error has a remedy."""
        found = list(CHECKS[name](self.context(overlay, profile)))
        for finding in found:
            assert finding.fix or finding.level in ("ok", "note"), finding
        return [(finding.level, finding.message, finding.fix) for finding in found]


@pytest.fixture
def clinic(tmp_path, monkeypatch):
    found = Clinic(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
        "HF_ENDPOINT",
        "HF_HUB_CACHE",
        "TRANSFORMERS_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MTKV_ASSETS", str(tmp_path / "assets"))
    return found


@pytest.fixture
def slurm(clinic):
    """A profile for SLURM, without a site file."""
    folder = clinic.folder / "profile"
    folder.mkdir()
    (folder / "config.yaml").write_text("executor: slurm\njobs: 10\n")
    return folder
