"""The device a process runs on: which one, its settings in MindSpore, what it has; compiled C++."""
