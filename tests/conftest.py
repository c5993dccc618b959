"""Shared by all tests: one thread, and a browser for those that ask for it."""

import pytest
import torch
from widget_page import launch

torch.set_num_threads(1)  # the same sums on every machine


@pytest.fixture(scope="module")
def chromium():
    yield from launch()
