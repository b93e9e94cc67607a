from pathlib import Path

from mtkv.evaluate.scoring import ScoredRun, score

wildcards, params = snakemake.wildcards, snakemake.params
for predictions, output, test in zip(snakemake.input.predictions, snakemake.output.scores, snakemake.input.test):
    run = ScoredRun(params.study, wildcards.arm, int(wildcards.seed), Path(output).stem)
    score(run, Path(predictions), Path(output), Path(test), params.limit)
