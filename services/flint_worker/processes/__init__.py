"""Programs of definitions on the worker's own machine: started, bounded, watched, ended.

Not a sandbox against hostile code: a program reads what the worker's user may read and reaches what its machine
reaches. What is promised: it inherits nothing of the worker's environment, file descriptors or memory; it does not
outlive its call, its worker or its limits. What is not: where the kernel allows no namespaces, a program that forks
faster than it is watched can leave something behind when its keeper is killed by others, and it can read what the
system shows of other processes of its user. Space in the work folder is bounded for each file, not in sum.
"""

from flint_worker.processes.program import EndedBy, Ending, Program, ProgramLimits
from flint_worker.processes.runner import ProcessRunner

__all__ = ["EndedBy", "Ending", "ProcessRunner", "Program", "ProgramLimits"]
