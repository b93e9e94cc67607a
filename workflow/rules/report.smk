report: "../report/workflow.rst"


# Whatever the page shows is an input, so that a changed log, map or answer makes it anew. Each of these files is made for the
# scores anyway: a dataset that could not be answered is a predictions file that says why, and a missing cell on the page.
USED_MAPS = [f"{ROOT}/maps/{name}" for name in STUDY.maps()]
STORED = STUDY.teachers.mode == "stored"
RUNS = [f"{arm}/seed{seed}" for arm, seed in STUDY.runs()]


rule report:
    input:
        compared=rules.compare.output,
        training=[
            card.replace("card.json", f"{name}.parquet")
            for card in train_cards()
            for name in ("training", "routing")
        ],
        maps=[
            f"{name}.{kind}.parquet"
            for name in USED_MAPS
            for kind in ("probe", "example")
        ],
        targets=[
            f"{name}.targets"
            for name in USED_MAPS
            if STORED and STUDY.teachers.tier != "raw"
        ],
        questions=expand(
            f"{ROOT}/data/test/{{dataset}}.parquet", dataset=STUDY.datasets
        ),
        predictions=expand(
            f"{ROOT}/predictions/{{run}}/{{dataset}}.parquet",
            run=RUNS,
            dataset=STUDY.datasets,
        ),
        latents=[
            table
            for arm in LATENT_ARMS
            for table in expand(
                rules.latents.output.tables, arm=arm, seed=STUDY.seeds_of(arm)
            )
        ],
        cards=[
            f"{ROOT}/data/card.json",
            *(
                f"{ROOT}/teachers/{teacher}/card.json"
                for teacher in STUDY.teachers_used()
                if STORED
            ),
            *(f"{name}.card.json" for name in USED_MAPS),
            *train_cards(),
            *expand(rules.predict.output.card, zip, **answered()),
            *(
                f"{ROOT}/latents/{arm}/seed{seed}/card.json"
                for arm in LATENT_ARMS
                for seed in STUDY.seeds_of(arm)
            ),
        ],
    output:
        page=report(
            f"{ROOT}/report/index.html",
            category="Answer",
            labels={"what": "the whole report"},
            caption="../report/page.rst",
        ),
        figures=report(
            directory(f"{ROOT}/report/figures"),
            patterns=["{figure}.svg"],
            category="Figures",
            labels=figure_labels,
            caption="../report/figure.rst",
        ),
        tables=report(
            directory(f"{ROOT}/report/tables"),
            patterns=["{table,headline|claims|pairs|matrix|items}.csv"],
            category="Tables",
            labels={"table": "{table}"},
            caption="../report/table.rst",
        ),
        summaries=[
            report(
                f"{ROOT}/report/{name}",
                category="Numbers",
                labels={"file": name},
                caption="../report/summary.rst",
            )
            for name in (
                "results.json",
                "comparison_report.md",
                "model_comparison.csv",
            )
        ],
        card=f"{ROOT}/report/card.json",
    log:
        f"{LOGS}/report.log",
    localrule: True
    params:
        study=STUDY.study,
        config=study_params(),
        code=code(
            "mtkv.stages.report",
            data=("report/templates/*", "report/static/*", "report/bundle/*"),
            own=lambda wildcards: STUDY.report,
        ),
    script:
        "../scripts/report.py"
