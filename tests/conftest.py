"Settings that hold for every test, and the one door to real data."

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before NumPy and torch are imported: workers share the cores, and nothing may reach for the
# network.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(name, value)
if (
    "PYTEST_XDIST_WORKER" not in os.environ and "BRAINTUNE_CACHE" not in os.environ
):  # one cache for all workers, gone afterwards
    os.environ["BRAINTUNE_CACHE"] = tempfile.mkdtemp(prefix="braintune-tests-")
    atexit.register(shutil.rmtree, os.environ["BRAINTUNE_CACHE"], ignore_errors=True)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def root() -> Path:
    "The top folder of the repository."
    return ROOT


@pytest.fixture
def real_data() -> Path:
    "The folder named by BRAINTUNE_DATA; the test is skipped, and says why, where there is none."
    folder = os.environ.get("BRAINTUNE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(
            "BRAINTUNE_DATA does not name a folder with real data (public sources: Alice, Brennan"
            " et al. 2016; Moth TextGrids, denizenslab/brain-informed-fine-tuning; Narratives,"
            " OpenNeuro ds002345; see the data chapters)"
        )
    return Path(folder)
