"""One thread for all tests: their tensors are so small that a second thread only adds waiting."""

import os

# The profiler of torch writes lines of its own to stderr; it reads the level when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch

torch.set_num_threads(1)
