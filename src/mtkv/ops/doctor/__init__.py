"""`mtkv doctor`: checks (`checks.CHECKS`, registered by the modules here) of study and machine → `Finding`s with remedies."""
