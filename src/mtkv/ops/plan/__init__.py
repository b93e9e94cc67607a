"""`mtkv plan`: a dry run → `plan.Plan` (jobs, costs, `limits` it would hit) → `tables`; `explain` and `copied_results` say why."""
