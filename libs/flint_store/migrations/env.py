"""Alembic's entry: runs on the connection that `flint_store.migrate` opened and locked."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="schema_revision",
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
