"""The tracked results hold what README and findings page say of them."""

import json
import re

import nbformat
import pandas as pd
import pytest
from conftest import ROOT

from braintune_nb.report.tables import across_simulations

RESULTS = ROOT / "nbs/experiments/results"
README = (ROOT / "README.md").read_text(encoding="utf8")
FINDINGS = "\n".join(
    cell.source
    for cell in nbformat.read(ROOT / "nbs/findings/1_findings.ipynb", as_version=4).cells
    if cell.cell_type == "markdown"
)


def table(name):
    return pd.read_csv(RESULTS / f"{name}.csv")


def said(sentence):
    "The claim must still stand on the page that the test speaks of."
    return sentence in " ".join(FINDINGS.split())


def signed(x):
    return f"{x:+.3f}".replace("-", "−").replace("+0.000", "0.000")


# ---- the front page


def language_rows(size):
    rows = table("quickstart").query("region == 'language' and subset == 'all'")
    return rows[rows["size"] == size].set_index("arm")


def test_the_headline_of_the_front_page_is_the_smallest_lead():
    rows = language_rows("6,12,2,4,8,660")
    leads = rows[rows.index.str.startswith("tuned minus ")]
    smallest = leads.loc[leads.value.idxmin()]
    assert len(leads) == 4 and smallest.name == "tuned minus matched_data_ridge"
    ends = f"{smallest.ci_low:.3f} to {smallest.ci_high:.3f}"
    lead = f"its strongest control, ridge on as much fMRI, by {signed(smallest.value)} of r"
    assert smallest.ci_low > 0 and f"{lead} (95 % interval {ends})" in README


def smallest_lead(other_meaning):
    leads = across_simulations(table("demonstration")).query("region == 'language'")
    own = leads[leads.other_meaning == other_meaning].set_index("control")
    return own.drop(index="smallest"), own.loc["smallest"]


def test_the_quickstart_leads_every_control_over_simulations_that_chose_nothing():
    leads, smallest = smallest_lead(0)
    assert len(leads) == 4 and (leads.ci_low > 0).all()
    assert smallest.n == 10 and smallest.ci_low > 0
    ends = f"{smallest.ci_low:.3f} to {smallest.ci_high:.3f}"
    assert f"its smallest lead is {signed(smallest.value)} ({ends})" in README


def test_with_another_storys_meaning_the_quickstart_does_not_lead():
    leads, smallest = smallest_lead(1)
    assert smallest.n == 10 and smallest.ci_high < 0
    assert "another story's meaning, tuning does not lead" in README
    assert leads.loc["permuted"].ci_low > 0
    assert said("Over permuted brains a small lead remains there")


def test_permuted_speech_gains_nearly_as_much_as_real():
    sound = language_rows("listening").value
    assert "With `--speech`, permuted brains gain nearly as much as real ones" in README
    assert 0.7 < sound.permuted / sound.tuned < 1


def test_the_front_page_fits_one_screen():
    text = re.sub(r"```.*?```", "", README.split("-->", 1)[1], flags=re.S)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    assert len(text.split()) <= 450 and len(re.findall(r"\d+(?:\.\d+)*", text)) <= 12


# ---- what the findings page says

ARMS = table("arms")
WHOLE = ARMS[(ARMS.region == "language") & (ARMS.subset == "all")]


def test_tuned_leads_permuted_in_the_large_experiments_alone():
    assert said("In the small experiments tuning gains nothing over permuted responses")
    assert said("In the large ones it leads them on every seed")
    gain = WHOLE.pivot_table(index=["size", "simulation_seed"], columns="arm", values="value")
    lead = (gain.tuned - gain.permuted).groupby("size").apply(list)
    assert min(lead["study"]) > 0.005 and len(lead["study"]) == 3
    assert min(lead["listening"]) < 0 < max(lead["listening"]) < 0.01


@pytest.mark.parametrize("arm", ["word_codes", "lm_tuned"])
def test_other_targets_do_as_well(arm):
    assert said("other targets do as well: random codes of the words, or the states of a language")
    mean = WHOLE.groupby(["size", "arm"]).value.mean()
    for size in ("listening", "study"):
        assert mean[size, arm] > mean[size, "tuned"] - 0.005


def test_every_control_of_the_speech_experiments_is_there():
    arms = WHOLE.groupby("size").arm.apply(set)
    controls = "permuted other_story word_codes lm_tuned stimulus_tuned head_only shared_subspace"
    assert set(controls.split()) <= arms["listening"] & arms["study"]


def test_the_own_part_of_the_model_grows_by_little():
    low = table("lowlevel_tuned")
    rows = low[(low.method == "partition") & (low.part == "unique_model")]
    rows = rows[rows.region == "language"].groupby("arm").value.apply(list)
    assert sum(x > 0.001 for x in rows["tuned"]) == 2 and max(rows["tuned"]) < 0.01
    assert max(rows["permuted"]) < 0.1 * max(rows["tuned"])


def test_experiments_of_this_size_cannot_decide_who_shares_what():
    shared = table("shared_maps")
    new = shared[(shared.region == "language") & (shared.subset == "new participants")]
    wide = new.pivot_table(index=["brains", "simulation_seed"], columns="arm", values="value")
    lead = (wide.tuned - wide.permuted).groupby("brains")
    assert abs(lead.mean()["as they are (map share .7)"]) < 0.005
    assert lead.max()["meanings share nothing"] > lead.min()["maps share nothing"]


def test_the_shared_subspace_needs_as_few_minutes():
    rows = table("efficiency_simulated")
    rows = rows[(rows.region == "language") & ~rows.counts_tuning & (rows.share == 0.9)]
    ratio = rows[rows.reference == "pretrained"].groupby("arm").ratio.median()
    assert 4 < ratio["tuned"] < 6 and ratio["shared_subspace"] > ratio["tuned"] - 1


def test_wrong_stories_cost_most():
    rows = table("variants").query("region == 'language' and subset == 'all'")
    mean = rows.groupby("variant").value.mean()
    assert mean.idxmin() == "wrong stories by index" and len(mean) == 8


def test_the_text_model_gains_on_every_seed_and_permuted_on_none():
    rows = table("robustness")
    default = rows[rows.knobs == "default"]
    assert len(default) == default.simulation_seed.nunique() == 10
    assert (default.gain_ci_low > 0).all() and not (default.gain_permuted_ci_low > 0).any()
    assert default.ceiling.between(0.4, 0.8).all()
    without = rows[rows.knobs == "meaning=0.0"].iloc[0]
    assert without.gain_ci_low < 0 < without.gain_ci_high
    assert without.gain_shared_subspace > default.gain_shared_subspace.mean() - 0.01


def test_transfer_fails_and_its_positive_control_does_not():
    cells = table("cross_language").query("subset == 'all' and region == 'language'")
    cells = cells[cells.train_layers == "all"]
    tuned = cells[cells.arm == "tuned"].groupby(["language", "link", "sharing"]).value.mean()
    assert tuned["en"].min() > 0.01 and abs(tuned["zh"]).max() < 0.012
    carried = cells.query("arm == 'carried' and language == 'zh' and link == 1")
    gain = carried.groupby("sharing").value.mean()
    assert list(gain.index) == [0, 0.5, 1] and gain.is_monotonic_increasing and gain[1] > 0.04


def test_bilingual_readers_gain_in_chinese():
    new = table("bilingual_arms").query("subset == 'new participants'")
    tuned = new[new.arm == "tuned"]
    assert not (tuned[tuned.language == "en"].ci_low > 0).any()
    assert (tuned[tuned.language == "zh"].ci_low > 0).sum() == 2
    mean = new[new.language == "zh"].groupby("arm").value.mean()
    for arm in ("head_only", "lm_tuned"):
        assert 0.4 < mean[arm] / mean["tuned"] < 0.6


def test_permuted_brains_help_the_speech_model_and_harm_the_text_models():
    assert said("Permuted responses raise the alignment of the speech model in every experiment")
    speech = WHOLE[WHOLE.arm == "permuted"].value
    text = table("robustness").query("knobs == 'default'").gain_permuted
    both = table("bilingual_arms").query("subset == 'all' and arm == 'permuted'").value
    assert speech.min() > 0 and len(speech) == 7
    assert (text < 0).sum() >= 8 and text.mean() < -0.01 and both.max() < 0


def test_heard_concepts_are_told_on_two_of_three_experiments():
    rows = table("downstream_arms").query("task == 'category_heard' and language == 'en'")
    rows = rows[rows.layer.isin(["band", "last"])].set_index(["arm", "simulation_seed"])
    tuned, other = rows.loc["tuned"], rows.loc["other_story"]
    assert (tuned.difference_low > 0).sum() == 2 and len(tuned) == 3
    assert (other.difference > tuned.difference).sum() == 1


def test_alice_is_a_null():
    alice = pd.read_csv(RESULTS / "alice_losses.csv", keep_default_na=False, na_values=["nan"])
    rows = alice[alice.subset == "all listeners"]
    r = rows.groupby(["arm", "loss"]).r.mean()
    assert abs(r["tuned"] - r["permuted"]).max() < 0.006 and len(r["tuned"]) == 4


def test_the_trained_model_adds_nothing_to_the_revoiced_story():
    assert said("The trained tiny model adds nothing to the timing and loudness of the words")
    gain = table("revoiced_alice").query("model == 'banded'").groupby("features").gain_average
    assert gain.max()["tiny_speech"] < 0 < gain.min()["random"] and gain.max()["random"] < 0.05


def test_no_kill_changed_a_result():
    kills = table("kills")
    assert (kills.groupby("command").size() >= 16).all() and kills.command.nunique() == 3
    assert len(kills) >= 50 and kills.before_the_end.mean() > 0.9
    assert (kills.value == 0).all() and (kills.share == "finished").sum() == 3


# ---- what lies in the folder

LISTED = re.findall(
    r"^\| `(\S+)`[^|]*\| `([^`]+)` \| (.+) \|$", (RESULTS / "README.md").read_text(), re.M
)
LISTED = [row for row in LISTED if "." in row[0]]
GAINS = (
    "arms shared_maps ablations variants bilingual_arms cross_language voxel_sets lowlevel_tuned"
    " text_defects alice_losses alice_tuning"
).split()


def misspelt(columns):
    "Names that one schema has other names for."
    return sorted(set(columns) & set("roi who gain low high seed seeds gain_low gain_high".split()))


def test_every_result_is_listed_once_with_its_command_and_its_reader():
    present = {p.name for p in RESULTS.iterdir()} - {"README.md", "renamed.json"}
    names = [name for name, _, _ in LISTED]
    assert sorted(names) == sorted(present)
    for name, command, readers in LISTED:
        words = command.split()
        maker = f"nbs/experiments/{words[2]}.ipynb" if words[0] == "braintune" else words[1]
        assert (ROOT / maker).is_file(), (name, maker)
        for reader in re.findall(r"`([^`]+)`", readers):
            text = (ROOT / reader).read_text(encoding="utf8").replace("\\", "")
            assert name in text or f'table("{name.split(".")[0]}")' in text, (name, reader)


def test_tables_of_gains_have_one_schema():
    for name in GAINS:
        columns = set(pd.read_csv(RESULTS / f"{name}.csv", nrows=1))
        assert {"value", "ci_low", "ci_high", "n", "region"} - columns <= (
            {"region"} if name == "text_defects" else set()
        ), name
        assert misspelt(columns) == [], name
        if name != "alice_tuning":
            assert {"language", "tuning_seed", "tuning_seeds"} & columns > {"language"}, name
    assert misspelt(["arm", "roi", "gain", "value"]) == ["gain", "roi"]


def test_old_names_of_arms_are_known_and_gone():
    renamed = json.loads((RESULTS / "renamed.json").read_text())
    from braintune_nb.train.conditions import ARMS as KNOWN

    assert set(renamed["arms"].values()) <= set(KNOWN) and not set(renamed["arms"]) & set(KNOWN)
    for path in RESULTS.glob("*.csv"):
        table = pd.read_csv(path)
        if "arm" in table and path.stem in (*GAINS, "downstream_arms", "efficiency_simulated"):
            assert not set(table.arm) & set(renamed["arms"]), path.name
