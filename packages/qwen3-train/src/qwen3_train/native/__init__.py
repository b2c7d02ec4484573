"""Operations of a training step in C++, for CPUs with a compiler; the portable ones do the same, slower."""
