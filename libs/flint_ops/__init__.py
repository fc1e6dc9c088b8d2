"""Configuration, logs, metrics, health, the clocks and the life of a service."""
