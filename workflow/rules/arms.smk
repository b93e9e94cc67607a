rule train:
    input:
        unpack(kv_inputs),
        train=f"{ROOT}/data/train.parquet",
        val=f"{ROOT}/data/val.parquet",
    output:
        model=directory(f"{ROOT}/arms/{{arm}}/seed{{seed}}/model"),
        log=f"{ROOT}/arms/{{arm}}/seed{{seed}}/training.parquet",
        routing=f"{ROOT}/arms/{{arm}}/seed{{seed}}/routing.parquet",
        card=f"{ROOT}/arms/{{arm}}/seed{{seed}}/card.json",
    log:
        f"{LOGS}/arms/{{arm}}-seed{{seed}}.log",
    threads: STUDY.resources.train.threads
    resources:
        **job_resources("train", saves=True),
        checkpoint_seconds=round(STUDY.resources.train.checkpoint_minutes * 60),
        report_to=STUDY.resources.train.report_to,
        strategy=STUDY.resources.train.strategy,
        stream=int(STUDY.resources.train.stream),
        workers=STUDY.resources.train.workers,
    params:
        study=STUDY.study,
        student=lambda wildcards: model_params(model_of(wildcards.arm)),
        arm=arm_params,
        code=code("mtkv.stages.train", own=lambda wildcards: STUDY.arms[wildcards.arm]),
    script:
        "../scripts/train.py"


# Asked for by `mtkv gate`; no other rule reads it.
rule gate:
    input:
        unpack(kv_inputs),
        train=f"{ROOT}/data/train.parquet",
        val=f"{ROOT}/data/val.parquet",
    output:
        table=f"{ROOT}/gate/{{arm}}/steps{{steps}}-batches{{batches}}/cosines.parquet",
        card=f"{ROOT}/gate/{{arm}}/steps{{steps}}-batches{{batches}}/card.json",
    log:
        f"{LOGS}/gate/{{arm}}-steps{{steps}}-batches{{batches}}.log",
    wildcard_constraints:
        steps=r"\d+",
        batches=r"\d+",
    threads: STUDY.resources.train.threads
    resources:
        **job_resources("train"),
    params:
        study=STUDY.study,
        student=lambda wildcards: model_params(model_of(wildcards.arm)),
        seed=lambda wildcards: STUDY.seeds_of(wildcards.arm)[0],
        arm=arm_params,
        code=code("mtkv.stages.gate", own=lambda wildcards: STUDY.arms[wildcards.arm]),
    script:
        "../scripts/gate.py"
