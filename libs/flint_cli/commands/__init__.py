"""The commands of `flint`, one file each."""
