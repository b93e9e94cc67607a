# What the latent tokens of a run are worth, say and were taught. Only runs with latents have it, and only the report reads it.
LATENT_ARMS = STUDY.latent_arms()


rule latents:
    input:
        unpack(kv_inputs),
        model=f"{ROOT}/arms/{{arm}}/seed{{seed}}/model",
        test=expand(f"{ROOT}/data/test/{{dataset}}.parquet", dataset=STUDY.datasets),
        examples=example_files(STUDY.datasets),
        val=f"{ROOT}/data/val.parquet",
    output:
        tables=expand(
            f"{ROOT}/latents/{{{{arm}}}}/seed{{{{seed}}}}/{{table}}.parquet",
            table=("accuracy", "decoded", "kept"),
        ),
        card=f"{ROOT}/latents/{{arm}}/seed{{seed}}/card.json",
    log:
        f"{LOGS}/latents/{{arm}}-seed{{seed}}.log",
    wildcard_constraints:
        arm=one_of(LATENT_ARMS),
    threads: STUDY.resources.predict.threads
    resources:
        **job_resources("predict"),
    params:
        study=STUDY.study,
        arm=arm_params,
        evaluation=written(STUDY.evaluation),
        chat=STUDY.student.chat_date,
        code=code(
            "mtkv.stages.diagnose_latents",
            data=("evaluate/tasks/*.yaml",),
            own=lambda wildcards: [STUDY.arms[wildcards.arm], STUDY.data],
        ),
    script:
        "../scripts/latents.py"
