"""What would keep a study from running on this machine or cluster, found before anything is sent, each finding with its remedy."""
