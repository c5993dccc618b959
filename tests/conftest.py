"""Shared by all tests: torch in the doctests, one thread, and two unlike distributions."""

import pytest
import torch

torch.set_num_threads(1)  # the same sums on every machine


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    doctest_namespace["torch"] = torch
