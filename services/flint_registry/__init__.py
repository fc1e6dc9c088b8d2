"""The registry: workers register and heartbeat here; any replica answers, one leads and keeps the history."""
