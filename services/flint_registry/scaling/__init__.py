"""The autoscaler: what the leading registry sees of each pool, decides, does, and writes down."""
