"""The `flint` command."""
