"""What a study will run, why, how long and how large, before anything is sent: the command `mtkv plan`."""
