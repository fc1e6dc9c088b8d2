"""The inside of the machine: frames, the kernel that moves them, and what each kind of task does."""
