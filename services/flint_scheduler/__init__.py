"""The orchestrators: accept runs, own shards, open legs, fold the journal, recover."""
