"""The long workloads of `full.py`: a mixed day, recovery, a long history."""
