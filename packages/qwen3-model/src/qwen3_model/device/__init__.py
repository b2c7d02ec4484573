"""The device a process runs on: which one, what MindSpore is told of it, what it has; compiled C++."""
