"""The record: everything of Flint's that is in PostgreSQL. The only package that imports SQLAlchemy and psycopg for it.

Every statement is a constant with a name and a comment on the indexes it uses. Expected failures are the exceptions of
`flint_store.errors`.
"""
