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
        mem_mb=resource("train", "mem_mb"),
        runtime=resource("train", "runtime"),
        gpu=resource("train", "gpu"),
    params:
        study=STUDY.study,
        student=model_params(STUDY.student),
        arm=arm_params,
        code=code("mtkv.distill.train"),
    script:
        "../scripts/train.py"
