"""Shared by all tests: one thread, Ctrl-C as usual, and a browser for those that ask for it."""

import signal

import pytest
import torch
from widget_page import launch

torch.set_num_threads(1)  # the same sums on every machine
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what runs behind it


@pytest.fixture(scope="module")
def chromium():
    yield from launch()
