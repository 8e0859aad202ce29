"""The tracked results hold what the README says of them."""
import re

import pandas as pd
from conftest import ROOT

TABLE = pd.read_csv(ROOT / "nbs/experiments/results/robustness.csv")
README = (ROOT / "README.md").read_text(encoding="utf8")


def test_the_table_has_ten_seeds_and_other_noise():
    default = TABLE[TABLE.knobs == "default"]
    assert default.simulation_seed.nunique() == len(default) >= 10
    assert {"seed", "language", "gain_low", "gain_permuted_high"} <= set(TABLE)
    assert TABLE.knobs.str.startswith("snr=").any() and TABLE.knobs.str.startswith("meaning=0").any()


def test_the_readme_counts_as_the_table_does():
    default = TABLE[TABLE.knobs == "default"]
    found = re.search(r"In (\d+) of (\d+) simulated experiments", README)
    assert found, "the README does not speak of the seeds"
    assert [int(x) for x in found.groups()] == [int((default.gain_low > 0).sum()), len(default)]


def test_ceilings_are_in_the_range_that_the_experiment_promises():
    assert TABLE[TABLE.knobs == "default"].ceiling.between(.4, .8).all()
