"""Random faults under mixed traffic, judged afterwards: `python -m support.soak` below `tests`, or `make soak`."""
