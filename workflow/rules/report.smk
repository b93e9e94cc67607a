rule report:
    input:
        compared=rules.compare.output,
        logs=[card.replace("card.json", "training.parquet") for card in train_cards()],
        data=f"{ROOT}/data/card.json",
    output:
        page=f"{ROOT}/report/index.html",
        figures=directory(f"{ROOT}/report/figures"),
        tables=directory(f"{ROOT}/report/tables"),
        summaries=expand(
            f"{ROOT}/report/{{name}}",
            name=("results.json", "comparison_report.md", "model_comparison.csv"),
        ),
        card=f"{ROOT}/report/card.json",
    log:
        f"{LOGS}/report.log",
    params:
        study=STUDY.study,
        config=written(STUDY),
        code=code(
            "mtkv.report.page",
            data=("report/templates/*", "report/static/*", "report/bundle/*"),
        ),
    script:
        "../scripts/report.py"
