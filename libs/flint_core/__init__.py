"""The pure core: definitions, programs, the machine that executes them, expressions. No I/O, no clock."""
