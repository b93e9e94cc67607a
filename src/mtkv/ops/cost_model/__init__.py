"""Seconds and bytes of a job: `past_runs` (measured) or `work` (FLOPs, bytes) on `devices` → `estimate`; `schedule` adds jobs up."""
