from itertools import zip_longest
from pathlib import Path

from mtkv.config.evaluation import EvaluationConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.teacher_kv import TeacherFiles, store_folder
from mtkv.latent.evaluation.selected_positions import LatentTeaching
from mtkv.stages.diagnose_latents import diagnose_latents
from mtkv.stages.predict import ModelSource
from mtkv.provenance.card import Card

given, arm = snakemake.input, snakemake.params.arm
models = [ModelConfig.model_validate(teacher["config"]) for teacher in arm["teachers"]]
files = zip_longest(models, map(Path, given.get("maps", [])), [store_folder(Path(p)) for p in given.get("stores", [])])
with Card.for_job(snakemake, "latents") as card:
    card.result = diagnose_latents(
        ModelSource(Path(given.model), chat=snakemake.params.chat),
        LatentTeaching(
            **{name: arm[name] for name in ("training", "latent", "kv")},
            teachers=[TeacherFiles(*each, arm["tier"]) for each in files],
        ),
        [Path(path).stem for path in given.test],
        Path(given.val).parent,
        EvaluationConfig.model_validate(snakemake.params.evaluation),
        Path(snakemake.output.card).parent,
        int(snakemake.wildcards.seed),
    )
