"Settings that hold for every test, and the one door to real data."

import atexit
import csv
import os
import shutil
import tempfile
from collections import defaultdict
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

# ---- what `pytest` alone leaves to the full suite

DURATIONS = ROOT / "tests/full_suite.csv"  # seconds of each test, by the last `pytest --full`
LONG = 15.0  # s: what took longer is left to the full suite
LISTED = 1.0  # s: what was faster is not listed
SECONDS, OUTCOMES = defaultdict(float), {}


def pytest_addoption(parser):
    told = f"every test; writes their seconds to {DURATIONS.relative_to(ROOT)}"
    parser.addoption("--full", action="store_true", help=told)
    only = "just the long tests, which `pytest` alone leaves out"
    parser.addoption("--left-out", action="store_true", help=only)


def recorded() -> dict[str, dict]:
    "Test -> its row in the record."
    rows = csv.DictReader(DURATIONS.read_text(encoding="utf8").splitlines())
    return {row["test"]: row for row in rows}


def no_file_is_named(config) -> bool:
    "Whether `pytest` was called without files; workers are told by the process that started them."
    here = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return getattr(config, "workerinput", {}).get("no_file_is_named", here)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["no_file_is_named"] = no_file_is_named(node.config)


def pytest_collection_modifyitems(config, items):
    "Leave out the long tests, unless files are named or the full suite is asked for."
    if config.getoption("--full") or not no_file_is_named(config):
        return
    long = {test for test, row in recorded().items() if float(row["seconds"]) > LONG}
    wanted = lambda item: (item.nodeid in long) == config.getoption("--left-out")
    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


def pytest_runtest_logreport(report):
    "Seconds of every test, set-up included; the reports of all workers arrive here."
    SECONDS[report.nodeid] += report.duration
    if report.when == "call" or report.outcome != "passed":
        OUTCOMES[report.nodeid] = report.outcome


def pytest_sessionfinish(session):
    "Write what a full run measured, slowest first; rows of tests that did not run stay."
    config = session.config
    if not config.getoption("--full") or hasattr(config, "workerinput"):
        return
    rows = recorded()
    for test, seconds in SECONDS.items():
        rows[test] = dict(test=test, seconds=f"{seconds:.1f}", outcome=OUTCOMES[test])
    listed = [row for row in rows.values() if float(row["seconds"]) >= LISTED]
    with open(DURATIONS, "w", newline="", encoding="utf8") as file:
        table = csv.DictWriter(file, ["test", "seconds", "outcome"], lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(listed, key=lambda row: (-float(row["seconds"]), row["test"])))


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
