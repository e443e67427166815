"""Numba kernels for CPUs: inner loops as LLVM vectors, which LLVM lowers to whatever the machine has."""
