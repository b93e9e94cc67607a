from pathlib import Path

from mtkv.config.evaluation import EvaluationConfig
from mtkv.distill.teacher_kv import teacher_files
from mtkv.latent.evaluation.selected_positions import LatentTeaching
from mtkv.stages.diagnose_latents import diagnose_latents
from mtkv.stages.predict import ModelSource
from mtkv.provenance.card import Card

given, arm = snakemake.input, snakemake.params.arm
with Card.for_job(snakemake, "latents") as card:
    card.result = diagnose_latents(
        ModelSource(Path(given.model), chat=snakemake.params.chat),
        LatentTeaching(
            **{name: arm[name] for name in ("training", "latent", "kv")},
            teachers=teacher_files(snakemake),
        ),
        [Path(path).stem for path in given.test],
        Path(given.val).parent,
        EvaluationConfig.model_validate(snakemake.params.evaluation),
        Path(snakemake.output.card).parent,
        int(snakemake.wildcards.seed),
    )
