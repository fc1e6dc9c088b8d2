"""The generated stubs of the contracts in proto/."""
