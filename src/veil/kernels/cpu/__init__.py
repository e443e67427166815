"""The CPU backend: Numba and LLVM."""
