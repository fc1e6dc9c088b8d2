"""Other engines, driven through the same workloads as Flint: each is installed by package name when it is measured."""
