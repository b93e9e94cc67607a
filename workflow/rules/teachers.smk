SHARDS = [f"{number:04d}" for number in range(STUDY.teachers.shards)]
ROWS = [f"{ROOT}/data/{split}.parquet" for split in ("train", "val", "calibration")]


rule teacher_kv:
    input:
        rows=ROWS,
        runs=read_runs,
    output:
        shard=f"{ROOT}/teachers/{{teacher}}/shard-{{shard}}.safetensors",
        card=f"{ROOT}/teachers/{{teacher}}/shard-{{shard}}.card.json",
    log:
        f"{LOGS}/teachers/{{teacher}}-{{shard}}.log",
    threads: STUDY.resources.teachers.threads
    resources:
        **job_resources("teachers", saves=True),
        placement=STUDY.resources.teachers.placement,
    params:
        study=STUDY.study,
        student=model_params(STUDY.student),
        teacher=lambda wildcards: model_params(STUDY.teachers.models[wildcards.teacher]),
        layers=lambda wildcards: sorted(
            {align.layers for align in STUDY.aligns(wildcards.teacher)}
        ),
        shards=STUDY.teachers.shards,
        dtype=STUDY.teachers.raw_dtype,
        batch_size=STUDY.teachers.batch_size,
        importance=lambda wildcards: STUDY.needs_attention(wildcards.teacher),
        statistics=lambda wildcards: STUDY.row_statistics(wildcards.teacher),
        code=code("mtkv.kv.extract", "mtkv.align.layers"),
    script:
        "../scripts/teacher_kv.py"


rule teacher_index:
    input:
        shards=expand(
            f"{ROOT}/teachers/{{{{teacher}}}}/shard-{{shard}}.safetensors",
            shard=SHARDS,
        ),
    output:
        index=f"{ROOT}/teachers/{{teacher}}/index.parquet",
        card=f"{ROOT}/teachers/{{teacher}}/card.json",
    log:
        f"{LOGS}/teachers/{{teacher}}.log",
    localrule: True
    params:
        study=STUDY.study,
        code=code("mtkv.kv.store"),
    script:
        "../scripts/teacher_index.py"


rule map:
    input:
        rows=ROWS,
        index=teacher_index,
        runs=read_runs,
    output:
        map=f"{ROOT}/maps/{{teacher}}/{{align}}.safetensors",
        probe=f"{ROOT}/maps/{{teacher}}/{{align}}.probe.parquet",
        example=f"{ROOT}/maps/{{teacher}}/{{align}}.example.parquet",
        card=f"{ROOT}/maps/{{teacher}}/{{align}}.card.json",
    log:
        f"{LOGS}/maps/{{teacher}}-{{align}}.log",
    threads: STUDY.resources.maps.threads
    resources:
        **job_resources("maps"),
    params:
        study=STUDY.study,
        student=model_params(STUDY.student),
        teacher=lambda wildcards: model_params(STUDY.teachers.models[wildcards.teacher]),
        align=lambda wildcards: written(align_of(wildcards)),
        code=code("mtkv.stages.fit_map", own=align_of),
    script:
        "../scripts/map.py"


# Before any training: what can each teacher layer say that the student can express?
rule probe:
    input:
        tables=[f"{ROOT}/maps/{name}.probe.parquet" for name in STUDY.maps()],
    output:
        table=f"{ROOT}/maps/probe.parquet",
        card=f"{ROOT}/maps/probe.card.json",
    log:
        f"{LOGS}/maps/probe.log",
    localrule: True
    params:
        study=STUDY.study,
        code=code("mtkv.stages.fit_map"),
    script:
        "../scripts/probe.py"


rule targets:
    input:
        rows=ROWS[:2],
        index=f"{ROOT}/teachers/{{teacher}}/index.parquet",
        map=f"{ROOT}/maps/{{teacher}}/{{align}}.safetensors",
        runs=read_runs,
    output:
        targets=directory(f"{ROOT}/maps/{{teacher}}/{{align}}.targets"),
        card=f"{ROOT}/maps/{{teacher}}/{{align}}.targets.card.json",
    log:
        f"{LOGS}/maps/{{teacher}}-{{align}}.targets.log",
    resources:
        **job_resources("maps", on_gpu=False),
    params:
        study=STUDY.study,
        student=model_params(STUDY.student),
        time=lambda wildcards: align_of(wildcards).time,
        storing=[
            STUDY.teachers.tier,
            STUDY.teachers.dtype,
            STUDY.teachers.components,
        ],
        code=code("mtkv.stages.project_targets"),
    script:
        "../scripts/targets.py"
