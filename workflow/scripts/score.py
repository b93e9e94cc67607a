from pathlib import Path

from mtkv.evaluate.scoring import score

wildcards, params = snakemake.wildcards, snakemake.params
for predictions, output, test in zip(snakemake.input.predictions, snakemake.output.scores, snakemake.input.test):
    score(
        Path(predictions),
        Path(output),
        study=params.study,
        arm=wildcards.arm,
        seed=int(wildcards.seed),
        dataset=Path(output).stem,
        expected_items=Path(test),
        limit=params.limit,
    )
