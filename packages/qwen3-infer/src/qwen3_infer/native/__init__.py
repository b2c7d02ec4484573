"""The C++ kernels for a CPU: sources, their build, their calls."""
