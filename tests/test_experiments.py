"""Every experiment runs at its smallest size, through the command, from an empty folder; a killed
run goes on and ends with the same numbers.

Workers of pytest-xdist share one run of `tune_text`, made by whichever comes first."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import kill
import pytest
from conftest import ROOT
from filelock import FileLock

ARMS, LEAF = (
    {"pretrained", "tuned", "permuted", "shared_subspace"},
    {"mean", "ci_low", "ci_high", "n"},
)
SMALLEST = dict(size="smoke", epochs="1", permutations="1")
PAIRS = " ".join(f"-p {name} {value}" for name, value in SMALLEST.items())
TUNE = f"run tune_text {PAIRS} --out result".split()
# experiment -> parameters of its smallest run; every experiment but tune_text must be here
OTHERS = {
    "pretrain_text": (
        "steps",
        "4",
        "entries",
        "200",
        "width",
        "32",
        "dose",
        "0.5",
    ),  # with a dose the gates are reported, not asserted
    "robustness": ("size", "smoke", "seeds", "1", "extra_seeds", "0"),
    "tune_speech": ("size", "smoke", "epochs", "1", "languages", "en,zh", "permutations", "2"),
    "demonstration": (
        "size",
        "smoke",
        "epochs",
        "1",
        "simulations",
        "2",
        "tuning_seeds",
        "2",
        "shares",
        "[1.0]",
    ),
    "arms": (
        "size",
        "smoke",
        "simulations",
        "1",
        "epochs",
        "1",
        "arms",
        "tuned,permuted,word_codes,head_only",
        "encoding_arms",
        "shared_subspace,group_average",
    ),
    "alignment_by_layer": ("size", "smoke"),
    "lowlevel_impact": ("size", "smoke", "lowlevel", "power_spectrum,word_rate"),
    "data_efficiency": (
        "size",
        "smoke",
        "epochs",
        "1",
        "arms",
        "tuned",
        "draws",
        "2",
        "fit",
        "isotonic",
    ),
    "downstream_first": (
        "arms",
        '{"pretrained": "tiny_speech"}',
        "languages",
        "en",
        "layers",
        "band",
        "n_train",
        "60",
        "n_test",
        "30",
    ),
    "revoiced": (),
    "pretrain_speech": (
        "steps",
        "4",
        "passages",
        "3",
        "width",
        "32",
        "layers",
        "1",
        "contexts",
        "1",
        "draws",
        "1",
        "dose",
        "0.5",
        "batch_seconds",
        "24.0",
    ),
    "tune_bilingual": (
        "size",
        "4,4,1,2,2,300",
        "epochs",
        "1",
        "encode",
        "all",
        "equal",
        "True",
        "heads",
        "shared",
        "language_heads",
        "True",
        "arms",
        "tuned,permuted,monolingual",
    ),
    "cross_language": (
        "size",
        "4,2,1,2,2,300",
        "epochs",
        "1",
        "simulations",
        "1",
        "links",
        "[0.0, 1.0]",
        "sharings",
        "[0.0, 1.0]",
        "backbone_steps",
        "3",
    ),
    "controls": (
        "size",
        "4,4,1,2,2,300",
        "epochs",
        "1",
        "simulations",
        "1",
        "backbone",
        "tiny",
        "arms",
        "tuned,single_participant,monolingual,permuted,stimulus_tuned,lm_tuned",
        "teacher",
        "tiny",
    ),
    "voxel_sets": (
        "size",
        "2,3,1,2,2,420",
        "folds",
        "4",
        "knobs",
        '{"snr": 3.0}',
        "simulations",
        "1",
        "epochs",
        "1",
        "permutations",
        "500",
    ),  # the selection needs signal
    "downstream_text": (
        "size",
        "smoke",
        "tune",
        "1",
        "epochs",
        "1",
        "families",
        '{"tiny": {"pretrained": "tiny", "random": ["random:tiny"]}}',
    ),
    "loss_comparison": (
        "size",
        "smoke",
        "epochs",
        "1",
        "variants",
        '{"as it is": {}, "turns": {"participants": "batch", "loss": "mse"}}',
    ),
}


def start(folder, cache, *words):
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "BRAINTUNE_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "braintune_nb.cli", *words],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ended(process):
    "(exit status, stdout, stderr)"
    out, err = process.communicate(timeout=1800)
    return process.returncode, out, err


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    "(folder of a finished run of tune_text, what it printed, cache), one for all workers."
    top = tmp_path_factory.getbasetemp()
    top = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top
    folder, cache, said = top / "tune_text", top / "experiments_cache", top / "tune_text.txt"
    with FileLock(top / "tune_text.lock"):
        if not said.exists():
            code, out, err = ended(start(folder, cache, *TUNE))
            assert code == 0, err[-3000:]
            said.write_text(out, encoding="utf8")
    return folder / "result", said.read_text(encoding="utf8"), cache


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf8"))


def broken_leaves(tree, regions):
    """Places below region -> kind that do not hold a mean inside its interval and a number of
    participants."""
    wrong = [f"regions {sorted(tree)}"] if set(tree) != regions else []
    for region, kinds in tree.items():
        for kind in ("raw", "normalized"):
            leaf = kinds.get(kind, {})
            if (
                not LEAF <= set(leaf)
                or leaf["n"] < 1
                or not leaf["ci_low"] <= leaf["mean"] <= leaf["ci_high"]
            ):
                wrong.append(f"{region} {kind}: {leaf}")
    return wrong


def test_tune_text_keeps_the_contract_of_summary_json(tuned):
    summary = summary_of(tuned[0])
    regions = set(summary["ceiling"])
    assert ARMS <= set(summary["alignment"]) and {"language", "auditory"} <= regions
    tables = [summary["alignment"][arm] for arm in ARMS]
    tables += [summary["gain"], summary["gain_permuted"]]
    assert [w for table in tables for w in broken_leaves(table, regions)] == []
    assert all(0 < c <= 1 for c in summary["ceiling"].values())
    assert summary["seconds"] > 0 and summary["peak_memory_mb"] > 100


def test_gains_of_tune_text_are_differences_of_arms(tuned):
    summary = summary_of(tuned[0])
    mean = lambda table, region: table[region]["raw"]["mean"]
    alignment = summary["alignment"]
    for region in summary["ceiling"]:
        for arm, gain in (("tuned", "gain"), ("permuted", "gain_permuted")):
            wanted = mean(alignment[arm], region) - mean(alignment["pretrained"], region)
            assert mean(summary[gain], region) == pytest.approx(wanted, abs=1e-9)


def test_the_headline_of_tune_text_is_the_smallest_lead(tuned):
    summary = summary_of(tuned[0])
    for region, found in summary["headline"].items():
        leads = {c: by[region]["raw"]["mean"] for c, by in summary["over"].items()}
        assert set(leads) == {"pretrained", "permuted", "shared_subspace", "matched_data_ridge"}
        assert found["mean"] == min(leads.values()) == leads[found["against"]]
        assert found["missing"] == [] and set(found["beaten"] + found["open"]) == set(leads)


def test_tune_text_tells_its_parameters_and_its_report(tuned):
    folder, said, _ = tuned
    parameters = json.loads((folder / "run.json").read_text())["parameters"]
    assert parameters["epochs"] == 1 and parameters["size"] == "smoke"
    assert str(folder / "report.html") in said
    assert "tuning beats" in said and "its smallest lead" in said
    assert [p.name for p in folder.parent.iterdir()] == ["result"]


def test_broken_contracts_are_seen():
    leaf = dict(mean=0.1, ci_low=0.0, ci_high=0.2, n=3)
    assert broken_leaves({"a": dict(raw=leaf, normalized=leaf)}, {"a"}) == []
    assert (
        broken_leaves({"a": dict(raw=leaf, normalized={**leaf, "ci_low": 0.15})}, {"a"})
        and broken_leaves({"a": dict(raw=leaf)}, {"a"})
        and broken_leaves({}, {"a"})
    )


def loaded(html):
    return re.findall(
        r"""(?:<(?!a\b)[^>]*\b(?:src|href)\s*=\s*["']?|url\(\s*["']?|@import\s+["']?)"""
        r"""(https?:[^"' >)]+|//[^"' >)]+|(?!data:|#|https?:)[^"' >)]+)""",
        html,
    )


def test_the_report_is_one_self_contained_page(tuned):
    html = (tuned[0] / "report.html").read_text(encoding="utf8")
    assert (
        loaded(html) == [] and "data:image/png;base64," in html and "noise ceiling" in html.lower()
    )


def test_what_a_page_loads_is_seen():
    page = (
        '<script src="https://x.org/a.js"></script><img src=figures/a.png><link'
        ' href="//x.org/b.css"><style>b {background: url(https://x.org/c)}</style>'
    )
    assert loaded(page) == [
        "https://x.org/a.js",
        "figures/a.png",
        "//x.org/b.css",
        "https://x.org/c",
    ]
    assert (
        loaded('<a href="https://x.org">x</a><img src="data:image/png;base64,AA"><use href="#b">')
        == []
    )


def test_the_tuned_backbone_loads_without_this_package(tuned, tmp_path):
    code = """import sys
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model, info = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert not info["missing_keys"] and "braintune_nb" not in sys.modules, info
print(tuple(model(**tokenizer("the cat", return_tensors="pt")).last_hidden_state.shape[::2]))"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tuned[0] / "model" / "backbone")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout.strip() == "(1, 96)", done.stderr


def test_the_tuned_backbone_has_moved(tuned):
    from safetensors.numpy import load_file

    before, after = (
        load_file(f / "model.safetensors")
        for f in (ROOT / "braintune_nb/weights/tiny_text", tuned[0] / "model" / "backbone")
    )
    moved = set()
    for k, x in after.items():
        old = next((x for b, x in before.items() if b.endswith(k)), None)
        if old is not None and old.shape == x.shape and abs(old - x).max() > 1e-5:
            moved.add(k)
    assert any("attention" in k for k in moved), sorted(after)


def test_a_second_run_into_the_same_folder_is_refused(tuned, monkeypatch, capsys):
    from braintune_nb.cli import main

    folder = tuned[0]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    monkeypatch.chdir(folder.parent)
    with pytest.raises(SystemExit) as stop:
        main(list(TUNE))
    assert stop.value.code == 1 and "finished run" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def kill_between_arms(process, partial):
    "SIGKILL to the process that computes, when one arm is done and the next is not."
    state = partial / "state.json"
    while process.poll() is None and not (state.exists() and "tuned_seed0" in state.read_text()):
        time.sleep(0.02)
    stages = json.loads(state.read_text())["stages"]
    assert process.poll() is None and "permuted_shift1_seed0" not in stages
    os.kill(json.loads((partial / ".lock.json").read_text())["pid"], signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 1 and "repeat the command" in err


def kill_before_the_report(process, result):
    "SIGKILL to a command whose run is finished, and to its kernel."
    while process.poll() is None and not (result / "run.json").exists():
        time.sleep(0.02)
    kill.kill(process, "both")
    assert not (result / "report.html").exists()


def test_a_run_that_is_killed_twice_goes_on_and_ends_with_the_same_bits(tuned, tmp_path):
    finished, _, cache = tuned
    folder = tmp_path / "again"
    result, partial = folder / "result", folder / "result.partial"
    kill_between_arms(start(folder, cache, *TUNE), partial)
    assert not result.exists()
    before = (partial / "scores/tuned_seed0.npz").stat().st_mtime_ns
    kill_before_the_report(start(folder, cache, *TUNE), result)
    code, out, err = ended(start(folder, cache, *TUNE))
    assert code == 0 and "finished, but for" in out, err[-3000:]
    assert (result / "scores/tuned_seed0.npz").stat().st_mtime_ns == before  # not computed again
    assert kill.differences(finished, result, (cache, cache)) == []
    assert len(json.loads((result / "run.json").read_text())["sessions"]) == 2


def test_every_experiment_is_run_here():
    assert {p.stem for p in (ROOT / "nbs/experiments").glob("[!._]*.ipynb")} == {
        "tune_text",
        *OTHERS,
    }


def small_run(name, tmp_path, cache):
    pairs = [w for pair in zip(OTHERS[name][::2], OTHERS[name][1::2]) for w in ("-p", *pair)]
    code, _, err = ended(start(tmp_path / "here", cache, "run", name, *pairs, "--out", "result"))
    assert code == 0, err[-3000:]
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["result"]
    return tmp_path / "here" / "result", summary_of(tmp_path / "here" / "result")


def test_pretrain_text(tmp_path):
    from braintune_nb.model.backbone import load_backbone

    folder, summary = small_run("pretrain_text", tmp_path, tmp_path / "cache")
    assert {"perplexity", "en", "zh"} <= set(summary["gates"]) and summary["training"]["steps"] == 4
    model = load_backbone(folder / "model")
    assert (model.width, model.layers) == (32, 2)


def test_robustness(tuned, tmp_path):
    folder, summary = small_run("robustness", tmp_path, tuned[2])
    with open(folder / "scores" / "rows.csv", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    assert summary["rows"] == len(rows) == 1 and rows[0]["knobs"] == "default"
    assert all(-1 < float(rows[0][f"r_{arm}"]) < 1 for arm in ARMS) and float(
        rows[0]["gain_ci_low"]
    ) <= float(rows[0]["gain"]) <= float(rows[0]["gain_ci_high"])


def language_rows(path):
    "Rows of a table that are of the language region."
    with open(path, encoding="utf8") as f:
        return [r for r in csv.DictReader(f) if r["region"] == "language"]


def test_demonstration(tuned, tmp_path):
    folder, summary = small_run("demonstration", tmp_path, tuned[2])
    rows = language_rows(folder / "scores" / "rows.csv")
    models = Counter((r["simulation_seed"], r["arm"]) for r in rows)
    each = dict(tuned=2, permuted=2, shared_subspace=1, matched_data_ridge=1)
    assert models == {(s, arm): n for s in ("200", "201") for arm, n in each.items()}
    assert {float(r["other_meaning"]) for r in rows} == {1.0} and summary["experiments"] == 2
    shifts = {r["realised_correlation"] for r in rows if r["arm"] == "permuted"}
    assert len(shifts) == 4 and max(abs(float(x)) for x in shifts) < 0.3
    leads = language_rows(folder / "scores" / "leads.csv")
    assert len(leads) == 5 and {r["n"] for r in leads} == {"2"}


def test_tune_speech(tuned, tmp_path):
    from braintune_nb.model.release import BrainTuner

    folder, summary = small_run("tune_speech", tmp_path, tuned[2])
    regions = set(summary["ceiling"])
    assert set(summary["alignment"]) >= {"pretrained", "tuned", "permuted"} and sorted(
        summary["by_language"]
    ) == ["en", "zh"]
    assert (
        broken_leaves(summary["gain"], regions) == []
        and broken_leaves(summary["by_language"]["zh"]["gain"], regions) == []
    )
    model = BrainTuner.from_pretrained(folder / "model")
    assert "**simulated**" in (folder / "model" / "README.md").read_text()
    assert (
        sum(model.outputs.values()) > 0
        and (folder / "backbones" / "permuted" / "model.safetensors").is_file()
    )


def test_arms(tuned, tmp_path):
    folder, summary = small_run("arms", tmp_path, tuned[2])
    with open(folder / "scores" / "arms.csv", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    assert (
        {r["arm"] for r in rows}
        == {
            "tuned",
            "permuted",
            "word_codes",
            "head_only",
            "shared_subspace",
            "group_average",
            "weight_noise",
        }
        == set(summary["gain"])
    )
    assert (
        len({r["value"] for r in rows if r["subset"] == "all" and r["region"] == "language"}) == 7
    )  # no arm is another arm in disguise


def test_tune_bilingual(tuned, tmp_path):
    from braintune_nb.model.release import BrainTuner

    folder, summary = small_run("tune_bilingual", tmp_path, tuned[2])
    regions = set(summary["ceiling"])
    assert broken_leaves(summary["by_language"]["zh"]["gain"], regions) == [] and sorted(
        summary["by_quadrant"]
    ) == ["en to en", "en to zh", "zh to en", "zh to zh"]
    assert {"tuned", "permuted", "monolingual:en", "monolingual:zh", "shared_subspace"} <= set(
        summary["gain_arms"]
    )
    assert sorted(BrainTuner.from_pretrained(folder / "model").outputs) == [
        "sim01:en",
        "sim01:zh",
        "sim02:en",
        "sim02:zh",
    ]
    with open(folder / "scores" / "languages.csv", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    assert {(r["encoded_in"], r["language"]) for r in rows} == {
        (a, b) for a in ("en", "zh") for b in ("en", "zh")
    }


def test_cross_language(tuned, tmp_path):
    folder, summary = small_run("cross_language", tmp_path, tuned[2])
    with open(folder / "scores" / "cross_language.csv", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    assert {(float(r["link"]), float(r["sharing"])) for r in rows} == {
        (a, b) for a in (0, 1) for b in (0, 1)
    } and {r["language"] for r in rows} == {"en", "zh"}
    gains = {
        (r["link"], r["sharing"]): r["value"]
        for r in rows
        if (r["arm"], r["subset"], r["language"]) == ("tuned", "all", "zh")
    }
    assert len(set(gains.values())) == 4 and summary["untuned_language"] == "zh"
    english = {
        (r["link"], r["value"])
        for r in rows
        if (r["arm"], r["subset"], r["language"]) == ("tuned", "all", "en")
    }
    assert len(english) == 2  # sharing does not touch English


def test_controls_of_bilingual_tuning(tuned, tmp_path):
    folder, summary = small_run("controls", tmp_path, tuned[2])
    with open(folder / "scores" / "controls.csv", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    arms = {
        "tuned",
        "single_participant",
        "monolingual:en",
        "monolingual:zh",
        "permuted",
        "stimulus_tuned",
        "lm_tuned",
        "shared_subspace",
        "weight_noise",
    }
    assert {r["arm"] for r in rows} == arms and len(
        {r["value"] for r in rows if (r["subset"], r["language"]) == ("new participants", "zh")}
    ) == len(arms)


def test_voxel_sets(tuned, tmp_path):
    folder, _ = small_run("voxel_sets", tmp_path, tuned[2])
    with open(folder / "scores" / "voxel_sets.csv", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    assert (
        {"whole brain", "language", "semantic"} <= {r["set"] for r in rows}
        and {"tuned", "permuted"} <= {r["arm"] for r in rows}
        and {r["language"] for r in rows} == {"en", "zh"}
    )


def test_downstream_text(tuned, tmp_path):
    folder, _ = small_run("downstream_text", tmp_path, tuned[2])
    with open(folder / "scores" / "scores.csv", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    assert (
        {"pretrained", "random", "tuned", "permuted"} <= {r["arm"] for r in rows}
        and {r["language"] for r in rows} >= {"en", "zh"}
        and len({r["task"] for r in rows}) > 4
    )


def test_alignment_by_layer(tuned, tmp_path):
    folder, summary = small_run("alignment_by_layer", tmp_path, tuned[2])
    with open(folder / "scores" / "layers.csv", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    assert (
        {r["arm"] for r in rows} == {"pretrained", "random"}
        and len({r["layer"] for r in rows}) >= 3
        and all(float(r["ci_low"]) <= float(r["mean"]) <= float(r["ci_high"]) for r in rows)
    )


def test_lowlevel_impact(tuned, tmp_path):
    folder, summary = small_run("lowlevel_impact", tmp_path, tuned[2])
    assert {m["method"] for m in summary["means"]} == {"residual", "partition"} and summary[
        "changes"
    ] == []


def test_loss_comparison(tuned, tmp_path):
    folder, summary = small_run("loss_comparison", tmp_path, tuned[2])
    assert (
        set(summary["variants"]) == {"as it is", "turns"}
        and summary["variants"]["as it is"]["gain"] != summary["variants"]["turns"]["gain"]
    )


def test_data_efficiency(tuned, tmp_path):
    folder, summary = small_run("data_efficiency", tmp_path, tuned[2])
    assert list((folder / "scores").glob("*")) and list((folder / "figures").glob("*.png"))


def test_downstream_first(tuned, tmp_path):
    folder, _ = small_run("downstream_first", tmp_path, tuned[2])
    with open(folder / "scores" / "scores.csv", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) > 5 and all(0 <= float(r["score"]) <= 1 for r in rows if r["score"])


def test_pretrain_speech(tmp_path):
    from braintune_nb.model.backbone import load_speech_backbone

    folder, summary = small_run("pretrain_speech", tmp_path, tmp_path / "cache")
    assert load_speech_backbone(folder / "model").width == 32
