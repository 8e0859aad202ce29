"""Report: every number of a summary that was computed reaches the page; broken or hostile input
does not."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from braintune_nb.core import DataError, Run, read_json, write_json
from braintune_nb.data.recordings import Space
from braintune_nb.report import page as report_page
from braintune_nb.report.maps import alignment_figure, gain_figure, hemispheres, save_maps
from braintune_nb.report.page import report, sentences
from braintune_nb.report.tables import check_summary, collect, gain_table, summary_alignment, tidy


def discs(n=60):
    """Two patches of fsaverage5 vertices, around the left superior temporal gyrus and the right
    angular gyrus."""
    from nilearn import datasets, surface

    mesh, found = datasets.fetch_surf_fsaverage("fsaverage5"), []
    for side, centre, shift in (("left", (-60, -20, 0), 0), ("right", (50, -55, 30), 10242)):
        xyz = surface.load_surf_mesh(mesh[f"pial_{side}"]).coordinates
        found.append(shift + np.argsort(((xyz - np.array(centre)) ** 2).sum(1))[:n])
    return np.concatenate(found)


def interval(x):
    half = 2.571 * x.std(ddof=1) / np.sqrt(len(x))
    return {"mean": x.mean(), "ci_low": x.mean() - half, "ci_high": x.mean() + half, "n": len(x)}


def features_of_arms(rng, rows):
    "Signal, form, and features of each arm."
    signal, form = rng.normal(size=(rows, 4)), rng.normal(size=(rows, 6))
    arms = {
        "pretrained": form,
        "tuned": np.c_[form, signal + rng.normal(0, 0.8, signal.shape)],
        "permuted": np.c_[form, rng.permutation(signal)],
        "shared_subspace": np.c_[form, signal[:, :1]],
    }
    return signal, form, arms


def held_out_correlation(x, y, half):
    "Ridge on the first rows; r with the others."
    w = np.linalg.solve(x[:half].T @ x[:half] + 5 * np.eye(x.shape[1]), x[:half].T @ y[:half])
    a, b = x[half:] @ w, y[half:]
    return ((a - a.mean(0)) * (b - b.mean(0))).mean(0) / (a.std(0) * b.std(0))


def experiment(seed=0, people=6, rows=300, n=60, meaning=0.6):
    """A small encoding experiment, computed: ridge of each arm's features on responses with a
    known signal; r on held-out rows."""
    rng = np.random.default_rng(seed)
    signal, form, arms = features_of_arms(rng, rows)
    half, scores = rows // 2, {a: np.zeros((people, 2 * n)) for a in arms}
    for p in range(people):
        y = (
            form @ rng.normal(size=(6, 2 * n)) * 0.3
            + meaning * signal @ rng.normal(size=(4, 2 * n)) * np.r_[np.ones(n), np.full(n, 0.2)]
            + rng.normal(0, 1.5, (rows, 2 * n))
        )
        for arm, x in arms.items():
            scores[arm][p] = held_out_correlation(x, y, half)
    return scores


def regions(n):
    return {"language": slice(0, n), "auditory": slice(n, 2 * n)}


def in_regions(scores, n, ceiling, arm, base=None):
    "Region -> intervals of an arm, or of its difference to another one."
    found = {}
    for region, columns in regions(n).items():
        x = scores[arm][:, columns].mean(1)
        x = x if base is None else x - scores[base][:, columns].mean(1)
        found[region] = {"raw": interval(x), "normalized": interval(x / ceiling)}
    return found


def of_every_second(scores, n, arm, start):
    "Region -> interval over every second participant from `start` on."
    return {
        region: interval(scores[arm][start::2, columns].mean(1))
        for region, columns in regions(n).items()
    }


def layer_rows(scores, n):
    "Rows of four layers, each a quarter of the voxels."
    return [
        dict(arm=arm, layer=k, region=region, **interval(scores[arm][:, columns][:, k::4].mean(1)))
        for arm in ("pretrained", "tuned")
        for region, columns in regions(n).items()
        for k in range(4)
    ]


def training_log(x):
    "Six epochs, each of every eighth voxel."
    return [
        dict(
            epoch=e,
            train_loss=float(np.abs(x[e::8]).mean()),
            validation_correlation=float(x[e::8].mean()),
        )
        for e in range(6)
    ]


def training_rows(scores):
    "Logs of two arms and two seeds."
    return [
        dict(arm=arm, seed=s, log=training_log(scores[arm][s]))
        for arm in ("tuned", "permuted")
        for s in (0, 1)
    ]


def listeners(scores):
    "A table of a comparison of models."
    table = [
        {"model": "low-level", "r": scores["pretrained"].mean()},
        {"model": "banded", "r": scores["tuned"].mean(), "layer": 2},
    ]
    return {"title": "Bands", "table": table, "shifts": 200}


def gains(scores, n, ceiling):
    "The gains of the arms, in all and in parts of the participants and stories."
    gain, permuted, subspace = (
        in_regions(scores, n, ceiling, arm, "pretrained")
        for arm in ("tuned", "permuted", "shared_subspace")
    )
    both = {"gain": gain, "gain_permuted": permuted}
    return {
        **both,
        "gain_arms": {"shared_subspace": subspace},
        "by_group": {"tuning participants": both, "new participants": both},
        "gain_seen_unseen": {"seen": gain, "unseen": gain},
    }


def summarise(scores, n=60, ceiling=0.7):
    "A summary of the scores with every part that the page knows."
    parts = lambda arm: {
        "seen": of_every_second(scores, n, arm, 0),
        "unseen": of_every_second(scores, n, arm, 1),
    }
    return {
        "alignment": {arm: in_regions(scores, n, ceiling, arm) for arm in scores},
        "ceiling": dict.fromkeys(regions(n), ceiling),
        **gains(scores, n, ceiling),
        "seen_unseen": {arm: parts(arm) for arm in ("pretrained", "tuned")},
        "oracles": {"true signal": in_regions(scores, n, ceiling, "tuned")},
        "listeners": listeners(scores),
        "layers": layer_rows(scores, n),
        "training": training_rows(scores),
        "interval": "t interval over participants; it does not cover other stories.",
        "title": "A test run on random arrays",
        "notes": ["Computed from random arrays, to test the page."],
    }


@pytest.fixture(scope="module")
def scores():
    return experiment()


@pytest.fixture(scope="module")
def finished(scores, tmp_path_factory):
    run = Run.start(
        tmp_path_factory.mktemp("runs") / "made",
        {
            "seed": 0,
            "dataset": "simulated",
            "loss": "correlation_over_time",
            "layers": [1, 2],
            "note": "<img src=x onerror=alert(1)>",
        },
    )
    save_maps(
        run.path("scores/maps.npz"),
        Space("fsaverage5", "vertex", discs()),
        {"tuned": scores["tuned"], "gain": scores["tuned"] - scores["pretrained"]},
    )
    folder = run.finish(summarise(scores))
    report(folder)
    return folder


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.ids, self.open, self.tags, self.text = [], set(), [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[k] for k in ("src", "href") if k in attrs]
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        if any(k.startswith("on") for k in attrs):
            self.tags.append("handler")
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(folder):
    page = Page()
    page.feed((folder / "report.html").read_text())
    page.close()
    return page


def test_page_is_whole_and_alone(finished):
    page = read(finished)
    assert page.open == []  # every tag is closed, in order
    assert all(link.startswith(("data:", "#")) for link in page.links)  # nothing is fetched
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert "script" not in page.tags and "handler" not in page.tags
    assert (finished / "report.html").stat().st_size < 2_000_000
    assert page.tags.count("img") == 7  # five figures, two maps


def test_every_number_is_on_the_page(finished):
    text, summary = " ".join(read(finished).text), read_json(finished / "summary.json")
    for row in summary_alignment(summary).itertuples():
        assert report_page._number(row.mean) in text
    for row in gain_table(summary).itertuples():
        for x in (row.mean, row.ci_low, row.ci_high):
            assert report_page._number(x, True) in text
    for word in (
        "correlation_over_time",
        "simulated",
        "shared subspace",
        "t interval over participants",
        "Computed from random arrays",
        "unseen",
        "true signal",
        "new participants",
        "by kind of concept",
        "banded",
        "shifts",
    ):
        assert word in text


def test_sentence_follows_the_numbers(scores):
    found = summarise(scores)
    assert found["gain"]["language"]["raw"]["ci_low"] > 0 and sentences(found, "language")[
        0
    ].startswith("Tuning raised")
    null = summarise(
        {
            **scores,
            "tuned": scores["pretrained"] + np.linspace(-0.02, 0.02, len(scores["tuned"]))[:, None],
        }
    )
    assert (
        sentences(null, "language")[0].startswith("No reliable change")
        and "includes zero" in sentences(null, "language")[0]
    )
    worse = summarise({**scores, "tuned": 2 * scores["pretrained"] - scores["tuned"]})
    assert sentences(worse, "language")[0].startswith("Tuning lowered")
    broken = summarise({**scores, "permuted": scores["tuned"]})
    assert "cannot be read as learned" in sentences(broken, "language")[1]
    assert (
        "enough to explain"
        in sentences(summarise({**scores, "shared_subspace": scores["tuned"] + 0.1}), "language")[2]
    )


def test_report_can_be_made_again_byte_for_byte(finished):
    before = (finished / "report.html").read_bytes()
    (finished / "report.html").unlink()
    report(finished)
    assert (finished / "report.html").read_bytes() == before


def test_the_page_begins_with_what_was_found_and_ends_with_how(tmp_path, scores):
    from braintune_nb.report.page import experiment_defaults

    defaults = experiment_defaults()["robustness"]
    told = defaults | dict(extra_seeds=7)
    folder = Run.start(tmp_path / "told", told).finish(summarise(scores))
    page = report(folder).read_text(encoding="utf8")
    order = ['class="lead"', 'class="tiles"', "<nav>", 'id="gain"', 'id="limits"', 'id="run"']
    places = [page.index(mark) for mark in order]
    assert places == sorted(places)
    opened, folded = page[places[-1] :].split("<summary>All parameters</summary>")
    assert "extra_seeds" in opened and opened.count('scope="row"') == 1
    assert all(f">{name}<" in folded for name in told)


def test_least_summary_makes_a_page(tmp_path, scores):
    "Only what every run has, missing numbers as null; the page leaves out what is not there."
    summary = {
        k: v
        for k, v in summarise(scores).items()
        if k in ("alignment", "gain", "gain_permuted", "ceiling")
    }
    summary["alignment"]["tuned"]["auditory"]["normalized"] = dict.fromkeys(
        ("mean", "ci_low", "ci_high", "n"), float("nan")
    )
    summary["gain"]["language"]["raw"] |= {"ci_low": None, "ci_high": None}
    folder = Run.start(tmp_path / "least", {"seed": 1}).finish(summary)
    report(folder)
    text = " ".join(read(folder).text)
    assert (
        "no interval was computed" in text
        and "Maps" not in text
        and "nan" not in text.lower().split()
    )
    assert "did not state what its intervals cover" in text


def test_incomplete_summaries_are_refused(scores):
    summary = summarise(scores)
    for key in ("alignment", "gain", "gain_permuted", "ceiling"):
        with pytest.raises(DataError, match=key):
            check_summary({k: v for k, v in summary.items() if k != key})
    without = {k: v for k, v in summary["alignment"].items() if k != "shared_subspace"}
    with pytest.raises(DataError, match="shared_subspace"):
        check_summary({**summary, "alignment": without})


def test_broken_runs_are_refused(tmp_path, scores):
    summary = summarise(scores)
    folder = Run.start(tmp_path / "a", {"seed": 1}).finish(summary)
    (folder / "summary.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        report(folder)
    with pytest.raises(DataError, match="no finished run"):
        report(tmp_path)
    with pytest.raises(DataError, match="was changed"):
        write_json(folder / "summary.json", {**summary, "seconds": 1.0})
        report(folder)


def test_pickled_maps_are_refused(tmp_path, scores):
    folder = Run.start(tmp_path / "b", {"seed": 1}).finish(summarise(scores))
    np.savez(folder / "maps.npz", kind=np.array([{}], object))
    (folder / "scores").mkdir(exist_ok=True)
    shutil.move(folder / "maps.npz", folder / "scores" / "maps.npz")
    with pytest.raises(DataError, match="pickle"):
        report(folder)


def test_collect_names_what_varies(tmp_path, scores):
    for seed, loss in ((0, "mse"), (1, "mse"), (1, "huber")):
        Run.start(tmp_path / f"{loss}{seed}", {"seed": seed, "loss": loss, "epochs": 3}).finish(
            summarise(scores)
        )
    table = collect(sorted(tmp_path.iterdir()))
    assert list(table.columns[:5]) == ["run", "loss", "seed", "arm", "region"]
    assert len(table) == 3 * 3 * 2 * 2
    with pytest.raises(DataError, match="same parameters"):
        collect([tmp_path / "mse0", tmp_path / "mse0"])


def test_tidy_equals_a_loop(scores):
    tree = summarise(scores)["alignment"]
    loop = [(a, r, k, tree[a][r][k]["mean"]) for a in tree for r in tree[a] for k in tree[a][r]]
    assert (
        list(
            tidy(tree, ("arm", "region", "kind"))[["arm", "region", "kind", "mean"]].itertuples(
                index=False, name=None
            )
        )
        == loop
    )


def test_figures_show_the_numbers(scores):
    summary = summarise(scores)
    table = gain_table(summary).query("kind == 'raw'")
    raw = table.set_index(["arm", "region"])["mean"]
    for arm, key in (("tuned", "gain"), ("permuted", "gain_permuted")):
        assert raw[arm, "language"] == summary[key]["language"]["raw"]["mean"]
    dots = [l for ax in gain_figure(summary).axes for l in ax.lines if l.get_marker() == "o"]
    assert np.allclose(sorted(float(l.get_xdata()[0]) for l in dots), sorted(table["mean"]))
    lines = alignment_figure(summary).axes[0].lines
    assert [l.get_xdata()[0] for l in lines if l.get_linestyle() == "--"] == [0.7]


def test_vertices_go_to_their_hemispheres():
    sides = hemispheres([0, 20483], [1.0, 2.0])
    assert sides["left"][0] == 1 and sides["right"][-1] == 2 and np.isnan(sides["left"][1:]).all()


def test_page_in_a_browser(finished, tmp_path):
    "A real browser draws the page, light and dark, without an error; skipped where there is none."
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--screenshot={picture}",
            "--window-size=900,1200",
            f"file://{finished / 'report.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert picture.stat().st_size > 20_000, done.stderr
    dom = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            f"file://{finished / 'report.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert len(re.findall(r"<h2", dom)) >= 8
