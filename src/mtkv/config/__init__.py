"""What a study is: pydantic models of the config, checked before anything runs. Never imports torch.

YAML files → `overlay` (merge) → `raw_tree` (plain values) → `extends` (arms inherit) → pydantic sections → `references` → `study.Study`
                  every problem on the way → `errors.ConfigError`, one line each; `schema` writes the JSON schema for editors

*Arm*: one way to make a model. *Overlay*: a later file merged over the first. *Section*: one pydantic model of the config.
"""
