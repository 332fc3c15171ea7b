"""Out of memory is one line that says what to lower; the widths here are really impossible, the limit is a real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saev_core.config.base import PluginRef
from saev_core.errors import ConfigError, TrainError
from saev_core.sae.base import make_sae
from saev_core.support.out_of_memory import enough_memory


def test_an_impossible_width_says_what_to_lower() -> None:
    ref = PluginRef(name="topk", options={"d_sae": 10**13, "k": 4})
    with pytest.raises(ConfigError, match=r"out of memory \(640,000.0 GB more requested\); lower sae.d_sae \(10,000,000,000,000\)\.$"):
        make_sae(ref, 16)


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="size"), enough_memory("lower it.", TrainError):
        torch.zeros(3) + torch.zeros(4)
    with pytest.raises(TrainError, match=r"^out of memory; lower it\.$"), enough_memory("lower it.", TrainError):
        bytearray(1 << 60)


SCRIPT = """
import resource, torch
from saev_core.config.stages import TrainConfig
from saev_core.errors import TrainError
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.testing import ArraySource
from saev_core.testing.sae_contract import planted
from saev_core.training.train import TrainSpec, train
torch.set_num_threads(1)
source = ArraySource(planted(700, 16)[0])
sae = TopK(TopKConfig(d_in=16, d_sae=100_000, k=4))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, -1))
try:
    train(source, [TrainSpec("wide", sae)], TrainConfig(batch_size=256, n_tokens=2560, n_init=500))
except TrainError as error:
    print(error)
"""


def test_a_training_that_outgrows_the_memory_says_what_to_lower(tmp_path: Path) -> None:
    """A process that may take no more than 100 MB on top: the pre-activations of 256 vectors alone are as much."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("out of memory (")
    assert "; lower train.batch_size" in done.stdout
    assert done.stdout.count("\n") == 1
