"""A pocket study far too small to learn from, in a clean copy of the repository, run by Snakemake on the tests' cluster."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from slurm.cluster import Cluster, until

from mtkv.provenance.digest import file_digest
from mtkv.provenance.files import read_json

REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent
SITE = {
    "signal_seconds": 60,
    "partitions": {
        "gpu": {"max_runtime": 60, "max_mem_mb": 4000, "max_threads": 8, "max_gpu": 2},
        "cpu": {"max_runtime": 30, "max_mem_mb": 4000, "max_threads": 8},
    },
}
TRAINING = {
    "steps": 4,
    "batch_size": 8,
    "gradient_accumulation": 1,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "eval_steps": 4,
}
STUDY = {
    "seeds": [42],
    "datasets": ["pocket_gsm8k", "pocket_cmmlu"],
    "data": {"train_rows": 120, "validation_rows": 24, "calibration_rows": 40, "test_items": 2},
    "teachers": {"shards": 2},
    "evaluation": {"jobs": "per_dataset", "max_new_tokens": 4},
    "arms": {
        **dict.fromkeys(
            ["raw", "sft", "fixed", "similarity", "learnable", "fixed_shuffled", "teacher_qwen2", "teacher_gpt2"]
        ),
        "single": {"extends": None, "training": TRAINING},
        "values_only": {"description": "The values alone", "extends": "single", "kv": {"loss": {"lambda_k": 0.0}}},
    },
    "comparison": {"baseline": "single"},
    "resources": {
        "teachers": {"mem_mb": 700, "runtime": 12, "threads": 1, "gpu": 1},
        "maps": {"mem_mb": 500, "runtime": 15},
        "train": {"mem_mb": 800, "runtime": 20, "gpu": 1, "checkpoint_minutes": 0.001},
        "predict": {"mem_mb": 600, "runtime": 10, "gpu": 1},
    },
}
# The training waits at one of its steps for as long as a file is there, so that a fault can strike in its midst.
STEPS, HELD_AT = 12, 7
PATIENCE = 900  # seconds for Snakemake, on a machine that is busy with other things
HOLD = f"""
import os
import time
from pathlib import Path

from mtkv.training.trainer import DistillationTrainer

step = DistillationTrainer.training_step


def held_step(trainer, *arguments, **more):
    if trainer.state.global_step == {HELD_AT} and Path("hold").exists():
        Path(f"holding-{{os.environ.get('SLURM_JOB_ID')}}").write_text(str(os.getpid()))
        while Path("hold").exists() and not trainer.policy.asked:
            time.sleep(0.05)
    return step(trainer, *arguments, **more)


DistillationTrainer.training_step = held_step
"""
# The cluster's two nodes are this machine, whose resolver knows neither's name.
HERE_IS_ALL = """
import mtkv.training.world_layout as spread

spread.host_names = lambda nodelist: ["127.0.0.1"] * 2
"""
CARD = "results/pocket/arms/single/seed42/card.json"


def without_claims(study: dict) -> dict:
    """The study without the default's claims, of which most name arms that it lacks."""
    claims = yaml.safe_load((REPOSITORY / "tests/classic_study.yaml").read_text(encoding="utf-8"))["claims"]
    return study | {"claims": dict.fromkeys(claims)}


class Workplace:
    """A folder with the workflow, the package and a study."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster

    @classmethod
    def new(cls, folder: Path, cluster: Cluster) -> "Workplace":
        """A clean copy of the repository with the study above."""
        folder.mkdir(parents=True)
        shutil.copy(REPOSITORY / "Snakefile", folder)
        shutil.copy(REPOSITORY / "requirements.lock", folder)
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("workflow", "config", "src", "profiles"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
        shutil.copy(REPOSITORY / "tests/classic_study.yaml", folder / "config/config.yaml")
        (folder / "profiles/slurm/site.yaml").write_text(yaml.safe_dump(SITE))
        (folder / "study.yaml").write_text(yaml.safe_dump(without_claims(STUDY)))
        return cls(folder, cluster)

    def untrained(self, folder: Path, **train: Any) -> "Workplace":
        """A copy of this finished study with a longer training of one arm yet to do; `train` is added to its resources."""
        shutil.copytree(self.folder, folder, symlinks=True)
        shutil.rmtree(folder / "results/pocket/arms")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        training = TRAINING | {"steps": STEPS, "eval_steps": STEPS}
        arms = STUDY["arms"] | {"single": STUDY["arms"]["single"] | {"training": training}}
        resources = STUDY["resources"] | {"train": STUDY["resources"]["train"] | train}
        (folder / "study.yaml").write_text(
            yaml.safe_dump(without_claims(STUDY | {"arms": arms, "resources": resources}))
        )
        return Workplace(folder, self.cluster)

    def hold(self) -> None:
        """Let the training wait in its midst, for a fault to strike."""
        script = self.folder / "workflow/scripts/train.py"
        script.write_text(HOLD + script.read_text())
        (self.folder / "hold").touch()

    def snakemake(self, *arguments: str) -> subprocess.Popen:
        """Snakemake with the cluster's profile; what it says goes to snakemake.log."""
        command = [sys.executable, str(HERE / "fastpoll.py"), "--profile", "profiles/slurm", *arguments]
        # This machine has no NFS to wait for, and asks sooner how jobs are; all else is as the profile says.
        quick = ["--latency-wait", "10", "--slurm-init-seconds-before-status-checks", "1"]
        environment = os.environ | self.cluster.environment | {"PYTHONPATH": f"{self.folder}/src:{self.folder}"}
        with (self.folder / "snakemake.log").open("a") as log:
            return subprocess.Popen(
                [*command, *quick, "--configfile", "study.yaml"],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def succeeds(self, process: subprocess.Popen, seconds: float = PATIENCE) -> None:
        """Wait until Snakemake ends well."""
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = "nothing in time"
        assert code == 0, f"Snakemake ended with {code}\n{self.told()}"

    def told(self) -> str:
        """What Snakemake and the jobs said."""
        logs = [self.folder / "snakemake.log", *self.folder.glob("results/pocket/logs/**/*.log")]
        logs += self.folder.glob(".snakemake/slurm_logs/**/*.log")
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-100_000:]}" for log in logs if log.exists())

    def held(self) -> tuple[str, int]:
        """SLURM's number of the training's job and its Python process, once it holds."""
        until(lambda: list(self.folder.glob("holding-*")), PATIENCE, f"the training to begin\n{self.told()}")
        file = next(self.folder.glob("holding-*"))
        return file.name.removeprefix("holding-"), int(until(file.read_text, 5, "its process"))

    def release(self) -> None:
        """Let trainings pass."""
        (self.folder / "hold").unlink()

    def jobs(self, rule: str) -> list[dict[str, str]]:
        """SLURM's records of a rule's jobs, oldest first."""
        return self.cluster.jobs_of(rule, self.folder)

    def model(self) -> dict[str, str]:
        """Digest of each file of the trained model."""
        files = sorted((self.folder / CARD).parent.joinpath("model").iterdir())
        return {file.name: file_digest(file) for file in files}

    def losses(self) -> dict[int, list[float]]:
        """Training losses by step, as the training log has them."""
        log = pd.read_parquet((self.folder / CARD).with_name("training.parquet"))
        losses = log[(log["split"] == "train") & (log["term"] == "loss")]
        return {step: rows["value"].tolist() for step, rows in losses.groupby("step")}

    def resumed_at(self) -> list[int]:
        """The steps at which the training was resumed, by its card."""
        return read_json(self.folder / CARD)["result"]["resumed_at"]
