"""The student with latents: its layers (`student`), their refinement (`jacobi`), `generation`, `interventions` and `files`."""
