def kv_inputs(wildcards):
    """Stores and maps of the arm's teachers, in their order; nothing for arms without KV."""
    kv = STUDY.arms[wildcards.arm].kv
    teachers = kv.teachers if kv else []
    return {
        "stores": [f"{ROOT}/teachers/{teacher}/index.parquet" for teacher in teachers],
        "maps": [
            f"{ROOT}/maps/{teacher}/{kv.align.slug}.safetensors" for teacher in teachers
        ],
    }


def arm_params(wildcards):
    """What of an arm its training depends on: not its name, its description or which other arms there are."""
    arm = STUDY.arms[wildcards.arm]
    return {
        "training": written(arm.training) if arm.training else None,
        "kv": written(arm.kv) if arm.kv else None,
        "student_view": arm.student_view,
    }


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
        code=code_digest("mtkv.distill.train"),
    script:
        "../scripts/train.py"
