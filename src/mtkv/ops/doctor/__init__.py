"""`mtkv doctor`: what would keep a study from running on this machine, each finding with what to do about it.

    study + profile + machine ─ DoctorContext ─► every function in `command.CHECKS` ─► Findings ─► screen, JSON

A finding is ok, a note, a warning (may cost time or fail later) or an error (the study would stop). Nothing is submitted; what a check
writes to try the disk it removes again.
"""
