"""The embedded servers and the process supervisor behind `flint up`."""
