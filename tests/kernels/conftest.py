"""Where there is no Triton, as on macOS and Windows, its kernels' own tests are not collected."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["test_cuda.py"]
