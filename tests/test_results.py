"""The tracked results hold what the README says of them."""

import json
import re

import pandas as pd
from conftest import ROOT

TABLE = pd.read_csv(ROOT / "nbs/experiments/results/robustness.csv")
README = (ROOT / "README.md").read_text(encoding="utf8")


def test_the_table_has_ten_seeds_and_other_noise():
    default = TABLE[TABLE.knobs == "default"]
    assert default.simulation_seed.nunique() == len(default) >= 10
    assert {"tuning_seed", "language", "gain_ci_low", "gain_permuted_ci_high"} <= set(TABLE)
    assert (
        TABLE.knobs.str.startswith("snr=").any() and TABLE.knobs.str.startswith("meaning=0").any()
    )


def test_the_readme_counts_as_the_table_does():
    default = TABLE[TABLE.knobs == "default"]
    found = re.search(r"In (\d+) of (\d+) simulated experiments", README)
    assert found, "the README does not speak of the seeds"
    assert [int(x) for x in found.groups()] == [int((default.gain_ci_low > 0).sum()), len(default)]


def test_ceilings_are_in_the_range_that_the_experiment_promises():
    assert TABLE[TABLE.knobs == "default"].ceiling.between(0.4, 0.8).all()


# ---- the arms of the speech experiments, and the bilingual ones

ARMS = pd.read_csv(ROOT / "nbs/experiments/results/arms.csv")
ROWS = {
    "tuned on several participants": "tuned",
    "tuned on one participant": "single_participant",
    "permuted responses": "permuted",
    "shared subspace": "shared_subspace",
    "pretrained, encoding model": "matched_data_ridge",
    "responses to another story": "other_story",
    "states of a language model": "lm_tuned",
    "averaged responses": "averaged_responses",
    "responses and the model's own": "joint",
    "only the head": "head_only",
    "random codes": "word_codes",
    "weights moved at random": "weight_noise",
    "the model's own objective": "stimulus_tuned",
    "mean response": "group_average",
}


def signed(x):
    return f"{x:+.3f}".replace("-", "−")


def test_the_readme_s_table_of_arms_is_that_of_the_file():
    whole = ARMS[(ARMS.region == "language") & (ARMS.subset == "all")]
    for label, arm in ROWS.items():
        line = next(row for row in README.splitlines() if row.startswith(f"| {label}"))
        cells = [cell.strip() for cell in line.split("|")[2:4]]
        for size, cell in zip(("listening", "study"), cells):
            rows = whole[(whole.arm == arm) & (whole["size"] == size)]
            if not cell:
                assert rows.empty, (arm, size)
                continue
            assert cell.startswith(signed(rows.value.mean())), (arm, size, rows.value.mean())
            if "of" in cell:
                assert [int(n) for n in re.findall(r"\d+", cell.split("(")[1])[:2]] == [
                    int((rows.ci_low > 0).sum()),
                    len(rows),
                ]


def test_the_readme_says_how_far_tuned_leads_permuted_in_every_experiment():
    gain = ARMS[(ARMS.region == "language") & (ARMS.subset == "all")].pivot_table(
        index=["size", "simulation_seed"], columns="arm", values="value"
    )
    lead = (gain.tuned - gain.permuted).groupby("size").apply(list)
    assert (
        "{}, {} and {}, in the small ones".format(*map(signed, lead["study"])) in README
        and "({}, {}, {}, {})".format(*map(signed, lead["listening"])) in README
    )
    steps = ARMS[ARMS.subset == "all"].groupby("size").arm.apply(set)
    assert {
        "tuned",
        "permuted",
        "other_story",
        "word_codes",
        "lm_tuned",
        "stimulus_tuned",
        "head_only",
        "single_participant",
        "shared_subspace",
        "group_average",
        "weight_noise",
    } <= steps["listening"] & steps["study"]


def test_what_the_readme_says_of_seen_and_unseen_concepts():
    part = (
        ARMS[(ARMS.region == "language") & (ARMS["size"] == "study")]
        .groupby(["subset", "arm"])
        .value.mean()
    )
    for subset in ("seen", "unseen"):
        for arm in ("tuned", "permuted"):
            assert signed(part[subset, arm]) in README


def test_the_bilingual_numbers_of_the_readme():
    new = (
        pd.read_csv(ROOT / "nbs/experiments/results/bilingual_arms.csv")
        .query("subset == 'new participants'")
        .groupby(["arm", "language"])
        .value.mean()
    )
    for arm in ("tuned", "single_participant", "permuted", "monolingual:en", "monolingual:zh"):
        for language in ("en", "zh"):
            assert signed(new[arm, language]) in README, (arm, language, new[arm, language])
    cells = (
        pd.read_csv(ROOT / "nbs/experiments/results/cross_language.csv")
        .query("arm == 'tuned' and subset == 'all' and train_layers == 'all'")
        .groupby(["language", "link", "sharing"])
        .value.mean()
    )
    assert len(cells["zh"]) == 9
    for language in ("en", "zh"):
        for end in (cells[language].min(), cells[language].max()):
            assert signed(end) in README


def test_the_positive_control_of_transfer_in_the_readme():
    carried = pd.read_csv(ROOT / "nbs/experiments/results/cross_language.csv").query(
        "arm == 'carried' and subset == 'all' and language == 'zh' and link == 1"
    )
    gain = carried.groupby("sharing").value.mean()
    assert (
        carried.simulation_seed.nunique() == 3
        and list(gain.index) == [0, 0.5, 1]
        and "{}, {} and {} with none, half and all".format(*map(signed, gain)) in README
    )


def test_turns_and_defects_in_the_readme():
    table = (
        pd.read_csv(ROOT / "nbs/experiments/results/variants.csv")
        .query("region == 'language' and subset == 'all'")
        .groupby("variant")
        .value.mean()
    )
    assert len(table) == 8
    for variant, gain in table.items():
        if variant != "in turn by story":
            assert signed(gain) in README, (variant, gain)


def test_what_the_readme_says_of_heard_concepts():
    table = (
        pd.read_csv(ROOT / "nbs/experiments/results/downstream_arms.csv")
        .query("task == 'category_heard' and language == 'en' and layer == 'band'")
        .sort_values("simulation_seed")
    )
    others = table[table.arm.isin(["permuted", "word_codes", "lm_tuned", "other_story"])].difference
    assert (
        f"({', '.join(map(signed, table[table.arm == 'tuned'].difference))}; chance"
        f" {table.chance.iloc[0]:.3f})" in README
    )
    assert (
        f"({signed(others.min())} to {signed(others.max())})"
        in README.replace(", no interval above zero", "")
        and table.simulation_seed.nunique() == 3
    )
    assert not (
        table[table.arm.isin(["permuted", "word_codes", "lm_tuned", "other_story"])].difference_low
        > 0
    ).any()


def test_the_low_level_table_has_three_experiments_with_a_control():
    table = pd.read_csv(ROOT / "nbs/experiments/results/lowlevel_tuned.csv")
    assert (
        table.groupby(["arm", "method", "region", "part"]).simulation_seed.nunique().eq(3).all()
        and set(table.arm) == {"tuned", "permuted"}
        and {"before", "value", "ci_low", "ci_high", "language", "tuning_seed"} <= set(table)
    )


def test_what_the_readme_says_of_four_losses_on_alice():
    table = pd.read_csv(
        ROOT / "nbs/experiments/results/alice_losses.csv", keep_default_na=False, na_values=["nan"]
    ).query("subset == 'all listeners'")
    r = table.groupby(["arm", "loss"]).r.mean()
    three = lambda x: f"{x:.3f}"
    assert len(r["tuned"]) == len(r["permuted"]) == 4
    assert (
        f"stand at r = {three(r['tuned'].min())} to {three(r['tuned'].max())}, with permuted"
        f" responses at {three(r['permuted'].min())} to {three(r['permuted'].max())}, pretrained"
        f" {three(table.r_pretrained.mean())}, states alone by ridge"
        f" {three(r['features + ridge', ''])}, word rate and sound power alone"
        f" {three(r['low', ''])}" in README
    )


# ---- what an epoch of text tuning costs


def test_an_epoch_of_text_tuning_and_what_the_readme_says_of_it():
    table = pd.read_csv(ROOT / "nbs/experiments/results/text_tuning_speed.csv")
    epoch, same = table[table.part == "epoch"], table[table.part == "same windows"]
    measured = epoch[epoch.measured == "yes"].set_index("arm")
    assert (
        (measured.windows > 9000).all()
        and (measured[measured.precision == "float32"].speedup >= 3).all()
        and (measured[measured.precision == "bfloat16"].speedup >= 7).all()
    )
    assert (
        same[same.precision == "float32"].largest_loss_difference.max() < 1e-4
        and table[table.precision == "bfloat16"].largest_loss_difference.max() < 2e-3
    )
    said = re.search(
        r"an epoch over ([\d,]+) words takes ([\d.]+) minutes in float32 and ([\d.]+) in bfloat16"
        r" \(([\d.]+) and ([\d.]+) GB\), one window at a time ([\d.]+)",
        README,
    )
    assert said, "the README does not speak of an epoch"
    seconds = epoch.set_index("arm").seconds
    shown = [
        f"{measured.windows.iloc[0]:,}",
        f"{seconds['float32, 2 GB'] / 60:.1f}",
        f"{seconds['bfloat16, 2 GB'] / 60:.1f}",
        *(f"{measured.peak_mb[a] / 1000:.1f}" for a in ("float32, 2 GB", "bfloat16, 2 GB")),
        f"{seconds['one window at a time'] / 60:.1f}",
    ]
    assert list(said.groups()) == shown


# ---- what lies in the folder

RESULTS = ROOT / "nbs/experiments/results"
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
