# mtkv: distil the KV caches of several teachers into one student, and measure whether it helps.
#   snakemake --profile profiles/local all     (or single files: results/pocket/scores/learnable/seed42/pocket_gsm8k.json)
from snakemake.utils import min_version

min_version("9.20")


configfile: "config/config.yaml"


# The image the lock file is meant for. Jobs run in .venv unless a site deploys an image of its own built on this one.
container: "docker://python:3.11-bookworm"


include: "workflow/rules/common.smk"
include: "workflow/rules/assets.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/teachers.smk"
include: "workflow/rules/arms.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/latents.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/clean.smk"


wildcard_constraints:
    teacher=one_of(STUDY.teachers.models),
    arm=one_of(STUDY.arms),
    seed=r"\d+",
    dataset=one_of(STUDY.datasets),
    shard=r"\d{4}",


localrules:
    all,
    scores,
    baselines,
    routing,


rule all:
    default_target: True
    input:
        f"{ROOT}/report/index.html",


rule scores:
    input:
        score_files(STUDY.arms),


rule baselines:
    input:
        score_files(BASELINES),


rule routing:
    input:
        score_files(ROUTING),
