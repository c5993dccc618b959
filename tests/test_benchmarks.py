"""That make bench still runs, and counts what it says it counts. Never how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from trl_side import require_trl

ROOT = Path(__file__).parents[1]


@pytest.fixture
def matmuls(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import matmuls

    return matmuls


def test_make_bench_prints_a_table_a_comparison_and_writes_their_numbers(tmp_path):
    require_trl()
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks",
        "--quick",
        "--json",
        tmp_path / "found.json",
    ]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    found = json.loads((tmp_path / "found.json").read_text())
    for name, title in {
        "grpo": "GRPO, 8 completions of 3 tokens",
        "recording": "train: GRPO",
        "stacking": "3 GRPO runs",
        "enumeration": "log π of every completion",
    }.items():
        assert title in shown
        assert found[name]
        assert all(number > 0 for number in found[name].values())
    assert found["quick"]


def test_flops_are_those_that_torch_counts_and_the_attention_that_it_leaves_out(matmuls):
    weight = torch.randn(8, 16, requires_grad=True)
    heads = torch.randn(3, 2, 5, 8, requires_grad=True)

    def work():
        mixed = heads.reshape(-1, 8) @ weight
        batched = torch.bmm(heads[0], heads[0].mT)
        (mixed.sum() + batched.sum()).backward()

    products = matmuls.products_of(work)
    with FlopCounterMode(display=False) as counter:
        work()
    assert matmuls.flops(products) == counter.get_total_flops() > 0
    assert matmuls.bare_seconds(products, 1) > 0

    def attend():
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).sum().backward()

    # a product of queries and keys is 2·heads·5·5·8, and there are two forward and five backward
    assert matmuls.flops(matmuls.products_of(attend)) == 7 * 2 * (3 * 2) * 5 * 5 * 8
