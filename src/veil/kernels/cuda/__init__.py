"""The CUDA backend: the interface's kernels in Triton, equal to the reference word for word.

Words are ``torch.uint32`` tensors on the GPU. With ``TRITON_INTERPRET=1`` the kernels run on CPU tensors, for tests.
"""
