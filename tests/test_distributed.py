"""Two real processes (torchrun, gloo, CPU) train as one does; killed in the middle of an epoch they
continue bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

DRIVER = r'''
import json, os, signal, sys
import numpy as np, torch

torch.set_num_threads(1)
from safetensors.torch import save_file
from transformers import Wav2Vec2Config
from braintune_nb.clock import regular_clock
from braintune_nb.data.splits import whole_story
from braintune_nb.data.stories import Events, Story
from braintune_nb.loss import get_loss
from braintune_nb.model.adapter import Adapter
from braintune_nb.model.backbone import load_speech_backbone
from braintune_nb.model.speech_inputs import speech_inputs
from braintune_nb.model.text_inputs import section_inputs
from braintune_nb.model.tuner import BrainTuner
from braintune_nb.simulate.text_model import toy_backbone
from braintune_nb.train.loop import TuneSettings
from braintune_nb.train.distributed import tune_distributed

vocabulary = [f"w{i}" for i in range(12)]
backbone = toy_backbone(vocabulary, width=16)


def pair(seed, n=14):
    draw = np.random.default_rng(seed)
    onset = np.arange(0, 2 * n, 1.0)
    story = Story(
        f"story {seed}",
        "en",
        Events(onset, onset + 0.5, [vocabulary[i] for i in draw.integers(12, size=2 * n)]),
        regular_clock(n, 2.0, first=1.0),
    )
    people = ("P1",) if seed == 1 else ("P1", "P2")  # P2 missed a story
    return section_inputs(whole_story(story), backbone, n_words=4), {
        p: torch.tensor(draw.normal(size=(n, 5))).float() for p in people
    }


def heard(seed, n=6):
    """The same for a speech model: a window of sound for each TR."""
    draw, story = (
        np.random.default_rng(seed),
        Story(
            f"tones {seed}",
            "en",
            Events(np.array([0.1]), np.array([0.5]), ("one",)),
            regular_clock(n, 0.5, first=0.3),
        ),
    )
    inputs = speech_inputs(
        whole_story(story),
        speech,
        delays=(0,),
        window=1.0,
        audio=0.1 * draw.normal(size=48000).astype(np.float32),
        sampling_rate=16000,
    )
    return inputs, {p: torch.tensor(draw.normal(size=(n, 5))).float() for p in ("P1", "P2")}


speech = load_speech_backbone(
    Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    ),
    random_weights=True,
    seed=2,
)
pairs, sounds = [pair(i) for i in range(9)], [heard(i) for i in range(4)]
WAYS = {
    "joint": {},
    "turns": dict(participants="batch", order="fixed"),
    "sharded": dict(shard=True),
    "speech": {},
    "lora": dict(shard=True),
}


def run(folder, way, kill=0):
    """One run of 7 visits (turns: 13) in steps of up to 3, dropout on; `kill`: SIGKILL to this
    process at that forward pass of training."""
    text = way not in ("speech", "lora")
    adapter = Adapter(rank=2) if way == "lora" else None
    tuner = BrainTuner(
        backbone if text else speech,
        {"P1": 5, "P2": 5},
        seed=1,
        layer=1,
        delays=(1, 2, 3, 4) if text else (0,),
        standardise=text,
        adapter=adapter,
    )  # layer 1 of 2: the pass is left early
    chosen, passes = dict(WAYS[way]), 0
    shard = chosen.pop("shard", False)

    def count(module, *_):
        nonlocal passes
        passes += module.training
        if passes == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    if text and not shard:
        tuner.model.register_forward_pre_hook(count)
    settings = TuneSettings(
        epochs=2, accumulate=3, learning_rate=1e-3, device="cpu", patience=0, **chosen
    )
    log = tune_distributed(
        tuner,
        *((pairs[:7], pairs[7:]) if text else (sounds[:3], sounds[3:])),
        get_loss("mse"),
        settings,
        shard=shard,
        folder=folder,
        save_every=1,
        progress=False,
    )
    return [{k: v for k, v in row.items() if k != "seconds"} for row in log], tuner


if __name__ == "__main__":
    out, rank, kill = sys.argv[1], int(os.environ.get("RANK", 0)), int(sys.argv[3])
    for name in sys.argv[2].split(","):
        import torch.distributed as dist

        log, tuner = run(
            f"{out}/{name}", name.split(" ")[0], kill if name.endswith("killed") else 0
        )
        seen = {
            "world": dist.get_world_size() if dist.is_initialized() else 1,
            "backend": dist.get_backend() if dist.is_initialized() else "",
            "log": log,
        }
        if rank == 0:
            save_file(
                {k: v.contiguous() for k, v in tuner.state_dict().items()},
                f"{out}/{name}.safetensors",
            )
        with open(f"{out}/{name}.{rank}.json", "w") as f:
            json.dump(seen, f)
'''
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ),
}


def start(folder, names, processes, kill=0):
    """Run the driver in so many processes; the exit status and what it said."""
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes > 1
        else []
    )
    done = subprocess.run(
        [
            sys.executable,
            *torchrun,
            str(folder / "driver.py"),
            str(folder),
            ",".join(names),
            str(kill),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )
    return done.returncode, done.stderr


def trained(folder):
    """Folder in which one process and two ran each way; others were killed, and continued by as
    many and, from a copy, by one instead of two."""
    (folder / "driver.py").write_text(DRIVER)
    status, said = start(
        folder,
        ["joint 2", "turns 2", "sharded 2", "speech 2", "lora 2", "joint 2 killed"],
        2,
        kill=8,
    )  # 5 passes an epoch and process
    assert (
        status != 0
        and (folder / "lora 2.1.json").exists()
        and not (folder / "joint 2 killed.0.json").exists()
        and "SIGKILL" in said
    ), said[-3000:]
    status, said = start(
        folder, ["joint 1", "turns 1", "speech 1", "lora 1", "joint 1 killed"], 1, kill=11
    )  # 7 passes an epoch
    assert status == -signal.SIGKILL and (folder / "lora 1.0.json").exists(), said[-3000:]
    for n in (1, 2):
        assert (
            folder / f"joint {n} killed" / "checkpoints" / "latest"
        ).read_text() == "step-000000004"  # 3 steps an epoch: in the middle
    shutil.copytree(folder / "joint 2 killed", folder / "joint 2 then 1")
    status, said = start(folder, ["joint 2 killed"], 2)
    assert status == 0, said[-3000:]
    status, said = start(folder, ["joint 1 killed", "joint 2 then 1"], 1)
    assert status == 0, said[-3000:]
    return folder


def log(folder, name, rank=0):
    return json.loads((folder / f"{name}.{rank}.json").read_text())


def apart(folder, a, b):
    """Largest difference of losses, and of weights; of weights whose exact gradient is zero
    (key biases, the norm before the z-score) apart."""
    rows = zip(log(folder, a)["log"], log(folder, b)["log"], strict=True)
    losses = max(abs(x[k] - y[k]) for x, y in rows for k in x if x[k] is not None)
    a, b = (load_file(folder / f"{name}.safetensors") for name in (a, b))
    assert a.keys() == b.keys()
    weights = {k: (a[k] - b[k]).abs().max().item() for k in a if a[k].is_floating_point()}
    idle = [
        k
        for k in weights
        if k.endswith(("key.bias", "k_proj.bias")) or k.endswith("layer.0.output.LayerNorm.weight")
    ]
    return (
        losses,
        max(v for k, v in weights.items() if k not in idle),
        max([weights[k] for k in idle], default=0),
    )


def same(folder, a, b):
    a, b = ((folder / f"{name}.safetensors").read_bytes() for name in (a, b))
    return a == b


PAIRS = (
    ("joint 2", "joint 1"),
    ("turns 2", "turns 1"),
    ("sharded 2", "joint 1"),
    ("speech 2", "speech 1"),
    ("lora 2", "lora 1"),
    ("joint 2 then 1", "joint 1"),
)


def assert_two_processes(runs, way):
    "Both know of each other, talk by gloo and tell the same log."
    first, second = (log(runs, way, rank) for rank in (0, 1))
    assert [s["world"] for s in (first, second)] == [2, 2], way
    assert [s["backend"] for s in (first, second)] == ["gloo", "gloo"], way
    assert first["log"] == second["log"], way


def test_two_processes_train_as_one_and_survive_sigkill(tmp_path):
    """One test, since all of it needs the same four starts: world size and backend, numbers,
    bits after a kill, another number of processes."""
    pytest.importorskip("accelerate")
    runs = trained(tmp_path)
    assert log(runs, "joint 1")["world"] == 1
    for way in ("joint 2", "turns 2", "sharded 2", "speech 2", "lora 2", "joint 2 killed"):
        assert_two_processes(runs, way)
    for two, one in PAIRS:
        losses, weights, idle = apart(runs, two, one)
        assert losses < 1e-6 and weights < 1e-6 and idle < 1e-4, (two, losses, weights, idle)
    # and something happened
    losses = {round(row["train_loss"], 3) for row in log(runs, "joint 1")["log"]}
    assert len(losses) == 2 and not same(runs, "joint 2", "turns 2")
    for n in (1, 2):  # killed in the middle of an epoch: bit for bit, log and all
        assert same(runs, f"joint {n} killed", f"joint {n}"), n
        assert log(runs, f"joint {n} killed")["log"] == log(runs, f"joint {n}")["log"], n
