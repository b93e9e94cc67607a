"""What a study is: pydantic models of the config, overlays, `extends`, digests and the JSON schema. Never imports torch."""
