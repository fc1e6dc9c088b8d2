"""Run control: commands for runs, resets, signals, jobs over many runs, workflows on hold, escalation."""
