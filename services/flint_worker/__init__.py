"""The worker: takes the legs assigned to it, executes steps, appends to the journal.

Holds nothing that cannot be lost.
"""
