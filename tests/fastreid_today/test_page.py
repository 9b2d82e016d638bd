"""docs/fastreid-today.md: what it says of fast-reid without the plugin, from fast-reid without the plugin."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastreid_today import changes

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "fastreid-today.md").read_text(encoding="utf-8")

# Each line that it prints is what a user of plain fast-reid 1.4.0 reads there.
PLAIN = """
import collections, collections.abc, importlib, sys, types, warnings
warnings.simplefilter("always")
warnings.warn = lambda message, *rest, **more: print(message)

def say(what):
    try:
        what()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")

say(lambda: importlib.import_module("fastreid.engine"))
say(lambda: importlib.import_module("fastreid.data.build"))
collections.Mapping = collections.abc.Mapping
sys.modules["torch._six"] = types.SimpleNamespace(string_classes=(str,))
from fastreid.config import get_cfg
import fastreid.engine
from fastreid.engine.train_loop import AMPTrainer
from fastreid.data.data_utils import DataLoaderX
from fastreid.modeling import build_model
from fastreid.utils.compute_dist import compute_jaccard_distance
say(lambda: importlib.import_module("fastreid.evaluation.rank"))
import faiss, torch
if not torch.cuda.is_available():
    say(lambda: sys.modules["fastreid.engine.launch"]._distributed_worker(0, print, 2, 2, 0, "", ()))
    say(lambda: AMPTrainer.run_step(types.SimpleNamespace(model=torch.nn.Linear(2, 2))))
    faiss.get_num_gpus = getattr(faiss, "get_num_gpus", lambda: 0)
    torch.Tensor.cuda = lambda tensor: tensor  # what comes first: as if there were a GPU
    if not hasattr(faiss, "StandardGpuResources"):
        say(lambda: compute_jaccard_distance(torch.zeros(3, 2)))
"""
MESSAGES = (
    "cannot import name 'Mapping' from 'collections'",
    "No module named 'torch._six'",
    "Cython rank evaluation (very fast so highly recommended) is unavailable, now use python evaluation.",
    "cuda is not available. Please check your installation.",
    "[AMPTrainer] CUDA is required for AMP training!",
    "has no attribute 'StandardGpuResources'",
)


@pytest.mark.skipif(changes.STATUS["cpu_launch"] != "on", reason="half of them are of a machine without CUDA")
def test_the_messages_are_those_of_plain_fastreid(tmp_path):
    run = subprocess.run([sys.executable, "-c", PLAIN], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for message in MESSAGES:
        assert message in run.stdout, run.stdout
        assert message in PAGE
