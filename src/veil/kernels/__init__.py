"""The arithmetic on arrays, three times with the same results: NumPy to define it, Numba for CPUs, Triton for GPUs."""
