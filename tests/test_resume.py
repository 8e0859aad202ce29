"""`tune()` killed with SIGKILL at random moments and started again gives bit-identical weights on
the CPU."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = r'''
import json, os, random, signal, sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np, torch

torch.set_num_threads(1)
from braintune_nb.clock import regular_clock
from braintune_nb.core import content_hash
from braintune_nb.data.splits import whole_story
from braintune_nb.data.stories import Events, Story
from braintune_nb.loss import get_loss
from braintune_nb.model.text_inputs import section_inputs
from braintune_nb.model.tuner import BrainTuner
from braintune_nb.simulate.text_model import toy_backbone
from braintune_nb.train.loop import TuneSettings, tune

folder, kills = sys.argv[1], json.loads(sys.argv[2])
vocabulary = [f"w{i}" for i in range(12)]
backbone = toy_backbone(vocabulary, width=16)


def pair(seed, n=16):
    draw = np.random.default_rng(seed)
    onset = np.arange(0, 2 * n, 1.0)
    story = Story(
        f"story {seed}",
        "en",
        Events(onset, onset + 0.5, [vocabulary[i] for i in draw.integers(12, size=2 * n)]),
        regular_clock(n, 2.0, first=1.0),
    )
    return section_inputs(whole_story(story), backbone, n_words=4), {
        "P1": torch.tensor(draw.normal(size=(n, 5))).float(),
        "P2": torch.tensor(draw.normal(size=(n, 5))).float(),
    }


pairs = [pair(i) for i in range(6)]


def run(where, kill=None):
    """One call of tune(); `kill` = (what, count): SIGKILL at that forward pass, or at that
    flush of a checkpoint file."""
    count = {"forward": 0, "fsync": 0}

    def hit(what):
        count[what] += 1
        if kill == [what, count[what]]:
            os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def counted(handle):
        hit("fsync")
        return fsync(handle)

    tuner = BrainTuner(backbone, {"P1": 5, "P2": 5}, seed=1)
    tuner.model.register_forward_pre_hook(lambda *_: hit("forward"))
    os.fsync = counted
    log = tune(
        tuner,
        pairs[:4],
        pairs[4:],
        get_loss("mse"),
        TuneSettings(epochs=4, accumulate=2, learning_rate=1e-3, patience=3),
        folder=where,
        progress=False,
        save_every=1,
    )
    os.fsync = fsync
    return [
        content_hash(*(p.detach().numpy() for p in tuner.parameters())),
        [{k: v for k, v in row.items() if k != "seconds"} for row in log],
        count,
    ]


def in_child(where, kill):
    """The same in a forked process; (exit status, what it returned)."""
    out = where + ".json"
    child = os.fork()
    if child == 0:
        result = run(where, kill)
        with open(out, "w") as f:
            json.dump(result, f)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return status, json.load(open(out)) if os.path.exists(out) else None


status, whole = in_child(os.path.join(folder, "whole"), None)
assert status == 0
answers = []
for i, kill in enumerate(kills):
    where = os.path.join(folder, f"killed {i}")
    chosen = [kill[0], max(1, round(kill[1] * whole[2][kill[0]]))]
    killed, nothing = in_child(where, chosen)
    again, result = in_child(
        where, [kill[0], max(1, round(kill[2] * whole[2][kill[0]]))]
    )  # a second time, later or earlier
    if result is None:
        again, result = in_child(where, None)
    answers.append(
        [
            os.WIFSIGNALED(killed) and os.WTERMSIG(killed),
            nothing is None,
            again,
            result and result[:2],
        ]
    )
print(json.dumps([whole[:2], whole[2], answers]))
'''


def killed(folder):
    """An uninterrupted run and six that were killed, twice each, at random places."""
    draw = random.Random(20)
    kills = [
        [what, draw.uniform(0.02, 0.99), draw.uniform(0.02, 1.2)]
        for what in ["forward"] * 3 + ["fsync"] * 3
    ]
    script = folder / "driver.py"
    script.write_text(DRIVER)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
    }
    done = subprocess.run(
        [sys.executable, str(script), str(folder), json.dumps(kills)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_sigkill_at_random_steps_gives_bit_identical_weights_and_log(tmp_path):
    whole, count, answers = killed(tmp_path)
    assert count["forward"] >= 18 and count["fsync"] > 50  # the kills had room
    for signal_number, nothing, status, result in answers:
        assert signal_number == signal.SIGKILL and nothing  # it was killed and returned nothing
        assert status == 0 and result[0] == whole[0]  # continued: same weights, bit for bit
        assert result[1] == whole[1]  # and the same log, but for the seconds
