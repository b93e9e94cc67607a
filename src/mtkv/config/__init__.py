"""What a study is: pydantic models of the config, overlays, `extends`, and the JSON schema. Never imports torch.

Words: *section*, one pydantic model; *overlay*, a YAML file merged over another; *resolved* arm, one whose `extends` is filled in.

    config.yaml + overlays ─ overlay ─► mapping ─ extends ─► resolved arms ─ study.Study ─ references ─► Study
                                        every problem found on the way ─ pydantic_errors ─► ConfigError
    Study ─ schema ─► config/schema.json (`make schema`; a test compares them)

A field = one line of `kv.py`, `arms.py`, `data.py` …; its `description` is the reference that editors show.
"""
