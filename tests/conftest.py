"""Shared by all tests: one thread."""

import torch

torch.set_num_threads(1)  # the same sums on every machine
