"""Wide forks: a run, the branch runs of its fork on shards of their own, and two owners that look after the fork."""
