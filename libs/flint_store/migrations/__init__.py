"""Versioned changes of the schema.

Rules: revisions are numbered `0001`, `0002`, … in one line. A change is made in two steps: first *expand* (add columns
with defaults, tables, indexes; the build before goes on working), and in a later release *contract* (drop what no build
in use reads), which also raises `cluster.oldest_code` to the oldest revision whose build still works.
There are no downgrades.
"""
