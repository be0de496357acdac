"""One thread for all tests: their tensors are so small that a second thread only adds waiting."""

import torch

torch.set_num_threads(1)
