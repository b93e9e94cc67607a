# One job of `predict` answers all datasets of a run (`evaluation.jobs: per_run`), because starting Python with torch,
# transformers and lm-eval costs more than answering a small dataset; `per_dataset` gives one job for each file.
# Either way any single file can be asked for by name.
PER_RUN = STUDY.evaluation.jobs == "per_run"
PER_JOB = STUDY.datasets if PER_RUN else ["{dataset}"]


rule predict:
    input:
        model=trained_model,
        runs=asked_runs,
        test=expand(f"{ROOT}/data/test/{{dataset}}.parquet", dataset=PER_JOB),
        examples=example_files(PER_JOB),
    output:
        predictions=expand(
            f"{ROOT}/predictions/{{{{arm}}}}/seed{{{{seed}}}}/{{dataset}}.parquet",
            dataset=PER_JOB,
        ),
        card=f"{ROOT}/predictions/{{arm}}/seed{{seed}}/"
        + ("card.json" if PER_RUN else "{dataset}.card.json"),
    log:
        f"{LOGS}/predictions/{{arm}}-seed{{seed}}"
        + ("" if PER_RUN else "-{dataset}")
        + ".log",
    group:
        "predict_{arm}_{seed}"
    threads: STUDY.resources.predict.threads
    resources:
        **job_resources("predict", saves=True),
        predicting=1,
    params:
        study=STUDY.study,
        model=asked_model,
        chat=lambda wildcards: model_of(wildcards.arm).chat_date,
        evaluation=written(STUDY.evaluation),
        code=code(
            "mtkv.stages.predict",
            data=("evaluate/tasks/*.yaml",),
            own=lambda wildcards: [STUDY.data, injected_kv(wildcards)],
        ),
    script:
        "../scripts/predict.py"


rule score:
    input:
        predictions=expand(
            f"{ROOT}/predictions/{{{{arm}}}}/seed{{{{seed}}}}/{{dataset}}.parquet",
            dataset=PER_JOB,
        ),
        test=expand(f"{ROOT}/data/test/{{dataset}}.parquet", dataset=PER_JOB),
    output:
        scores=expand(
            f"{ROOT}/scores/{{{{arm}}}}/seed{{{{seed}}}}/{{dataset}}.json",
            dataset=PER_JOB,
        ),
    log:
        f"{LOGS}/scores/{{arm}}-seed{{seed}}"
        + ("" if PER_RUN else "-{dataset}")
        + ".log",
    localrule: True
    params:
        study=STUDY.study,
        limit=STUDY.evaluation.limit,
        code=code("mtkv.evaluate.scoring"),
    script:
        "../scripts/score.py"
