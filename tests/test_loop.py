"""The loop beyond one participant and one objective: turns, published schedules, ridge heads, own
objectives, randomness, logs."""

from itertools import groupby

import numpy as np
import pytest
import torch

from braintune_nb.clock import regular_clock
from braintune_nb.core import ParameterError, RunError
from braintune_nb.data.splits import Section
from braintune_nb.data.stories import Events, Story
from braintune_nb.loss import get_loss
from braintune_nb.model.text_inputs import section_inputs
from braintune_nb.model.tuner import BrainTuner
from braintune_nb.simulate.text_model import toy_backbone
from braintune_nb.train.loop import (
    MicrobatchLoss,
    SingleProcess,
    TuneSettings,
    run_key,
    tune,
    validate,
)
from braintune_nb.train.participants import epoch_steps, natural_sort_key

WORDS = [f"w{i}" for i in range(12)]
PEOPLE = {"P3": 4, "P1": 4}  # in the order in which they take turns
mse = get_loss("mse")


@pytest.fixture(scope="module")
def backbone():
    return toy_backbone(WORDS, width=16, layers=1)


@pytest.fixture(scope="module")
def pairs(backbone):
    """Stories a (11 pieces, so that 10 must come after 9) and b (2 pieces, P1 missed it)."""
    draw, found = np.random.default_rng(1), []
    for name, n in (("a", 11), ("b", 2)):
        story = Story(
            name,
            "en",
            Events(
                np.arange(8 * n) * 1.0,
                np.arange(8 * n) + 0.5,
                [WORDS[i] for i in draw.integers(12, size=8 * n)],
            ),
            regular_clock(4 * n, 2.0, first=1.0),
        )
        for i in range(n):
            people = PEOPLE if name == "a" else ("P3",)
            found.append(
                (
                    section_inputs(
                        Section(f"{name}.{i + 1}", story, np.arange(4 * i, 4 * i + 4)),
                        backbone,
                        n_words=3,
                    ),
                    {p: torch.tensor(draw.normal(size=(4, 4))).float() for p in people},
                )
            )
    return found


class Watched(BrainTuner):
    """Keeps which sections went through for whom, and can be stopped at one of them."""

    stop = -1

    def forward(self, inputs, participants=None):
        if self.training:
            self.seen = [*getattr(self, "seen", []), (inputs.name, *participants)]
            if len(self.seen) == self.stop:
                raise KeyboardInterrupt("power cut")
        else:
            torch.rand(7), np.random.rand(3)  # validation draws what it likes
        return super().forward(inputs, participants)


class Name(torch.nn.Module):
    """An objective with weights and dropout of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.head, self.dropout = torch.nn.Linear(16, 16), torch.nn.Dropout(0.5)

    def loss(self, tuner, inputs):
        return torch.nn.functional.cross_entropy(
            self.head(self.dropout(inputs.read(tuner))),
            inputs.token_ids[torch.arange(len(inputs.position)), inputs.position],
        )


def run(
    backbone,
    pairs,
    heads="participant",
    stop=-1,
    folder=None,
    objective=None,
    validation=None,
    **settings,
):
    tuner = Watched(backbone, PEOPLE, heads=heads, seed=1)
    tuner.stop = stop
    chosen = TuneSettings(
        **{**dict(epochs=2, learning_rate=1e-3, device="cpu", patience=0), **settings}
    )
    log = tune(
        tuner,
        pairs,
        validation,
        mse,
        chosen,
        folder=folder,
        progress=False,
        save_every=1 if folder else None,
        objective=objective,
        objective_weight=0.5 if objective else 0.0,
    )
    return tuner, log


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_b12_story_by_story_in_the_fixed_order_of_the_released_code(backbone, pairs):
    tuner, log = run(backbone, pairs[::-1], participants="story", order="fixed", epochs=1)
    pieces = [f"a.{i}" for i in range(1, 12)]  # in time: 10 and 11 at the end
    assert tuner.seen == [(piece, p) for p in PEOPLE for piece in pieces] + [
        ("b.1", "P3"),
        ("b.2", "P3"),
    ]
    assert log[-1]["step"] == 24


def test_joint_passes_once_for_everyone_and_turns_once_each(backbone, pairs):
    joint, _ = run(backbone, pairs, epochs=1)
    batch, _ = run(backbone, pairs, epochs=1, participants="batch", accumulate=2)
    assert (
        len(joint.seen) == 13 and ("a.1", "P3", "P1") in joint.seen and ("b.1", "P3") in joint.seen
    )
    assert len(batch.seen) == 24 and sorted(batch.seen) == sorted(
        (s, p) for s, *people in joint.seen for p in people
    )
    assert (
        len([name for name, _ in groupby(batch.seen, key=lambda visit: visit[0])]) == 13
    )  # turns on one section, then the next


def test_every_visit_is_in_an_epoch_once_whatever_the_order():
    heard = []
    for i in range(3):
        people = [p for p in "xyz" if (i, p) != (1, "y")]
        heard += [(f"s{i}.{j}", people) for j in range(4)]
    everything = sorted((i, p) for i, (_, people) in enumerate(heard) for p in people)
    for mode in ("joint", "batch", "story"):
        for accumulate in (1, 5):
            steps = epoch_steps(heard, mode, seed=3, epoch=7, accumulate=accumulate)
            assert (
                sorted((i, p) for step in steps for i, people in step for p in people) == everything
            )
            assert [len(s) for s in steps[:-1]] == [accumulate] * (len(steps) - 1)


def test_dropout_depends_on_the_place_in_the_run_only(backbone, pairs):
    """The generators are disturbed by validation, by another order of the list, by whatever was
    drawn before."""
    plain, _ = run(backbone, pairs[:4], patience=0)
    torch.rand(1000)
    disturbed, _ = run(backbone, pairs[3::-1], validation=None)
    assert torch.equal(weights(plain), weights(disturbed))
    with_validation = (
        run(backbone, pairs[:4], validation=pairs[4:6], epochs=1)[0],
        run(backbone, pairs[:4], epochs=1)[0],
    )
    assert torch.equal(*(weights(t) for t in with_validation))


def without_seconds(log):
    timeless = lambda row: {k: v for k, v in row.items() if k != "seconds"}
    return [timeless(row) for row in log]


@pytest.mark.parametrize(
    "heads, stop", [("ridge", 5), ("ridge", 19), ("ridge", 14), ("individual", 3)]
)
def test_a_run_stopped_in_the_middle_of_an_epoch_continues_bit_for_bit(
    backbone, pairs, tmp_path, heads, stop
):
    "Turns by story, pinned heads, an objective with its own weights and dropout."
    how = dict(
        heads=heads, participants="story", accumulate=2, epochs=3, refresh=2, validation=pairs[11:]
    )
    whole, first, second = Name(), Name(), Name()
    go = lambda name, folder, **more: run(
        backbone, pairs[:4], objective=name, folder=tmp_path / folder, **how, **more
    )
    tuner, log = go(whole, "whole")
    with pytest.raises(KeyboardInterrupt):
        go(first, "cut", stop=stop)
    again, log_again = go(second, "cut")
    assert len(again.seen) < len(tuner.seen) and torch.equal(weights(again), weights(tuner))
    assert torch.equal(weights(second), weights(whole))
    assert without_seconds(log_again) == without_seconds(log)
    assert not torch.equal(weights(whole), weights(Name()))


def test_a04_and_b01_as_released(backbone, pairs):
    start = BrainTuner(backbone, PEOPLE, seed=1)
    tuner, _ = run(backbone, pairs[:3], schedule="epochs", epochs=1)
    assert torch.equal(weights(tuner.model), weights(start.model)) and not torch.equal(
        weights(tuner.heads), weights(start.heads)
    )
    _, log = run(backbone, pairs[:10], schedule="overplanned", epochs=8)
    rate = [row["learning_rate"] / 1e-3 for row in log]
    assert rate == sorted(rate) or np.argmax(rate) >= len(rate) * 0.5 - 1
    assert (
        rate[-1] == pytest.approx((3 * 2 * 80 - 80) / (3 * 2 * 80 * 0.9))
        and run(backbone, pairs[:3])[1][-1]["learning_rate"] == 0
    )


def test_adam_and_adamw_differ_by_decay_only(backbone, pairs):
    plain = [
        weights(run(backbone, pairs[:3], optimizer=o, weight_decay=0.0)[0])
        for o in ("adam", "adamw")
    ]
    decayed = [
        weights(run(backbone, pairs[:3], optimizer=o, weight_decay=0.1)[0])
        for o in ("adam", "adamw")
    ]
    torch.testing.assert_close(*plain, atol=1e-6, rtol=0)
    assert (decayed[0] - decayed[1]).abs().max() > 1e-4


def test_ridge_heads_are_solved_for_on_schedule(backbone, pairs, monkeypatch):
    calls = []
    monkeypatch.setattr(
        Watched,
        "refresh_heads",
        lambda self, p: calls.append(len(getattr(self, "seen", []))),
        raising=False,
    )
    run(backbone, pairs[:4], heads="ridge", epochs=5, refresh=2)
    assert calls == [0, 8, 16]
    run(backbone, pairs[:4], epochs=2)
    assert len(calls) == 3  # trained heads are left alone


def test_best_ridge_heads_come_back_with_the_best_backbone(backbone, pairs):
    tuner, log = run(
        backbone, pairs[:9], heads="ridge", epochs=6, learning_rate=3e-2, validation=pairs[9:]
    )
    r = [row["validation_correlation"] for row in log]
    assert np.argmax(r) < 5 and validate(
        tuner, sorted(pairs[9:], key=lambda pair: natural_sort_key(pair[0].name)), mse
    )[1] == max(r)


def test_an_objective_that_draws_is_validated_on_the_same_draw_every_epoch(backbone, pairs):
    class Draws(Name):
        def loss(self, tuner, inputs):
            return super().loss(tuner, inputs) if self.training else torch.rand(())

    log = tune(
        BrainTuner(backbone, PEOPLE, seed=1),
        pairs[:3],
        pairs[11:],
        mse,
        TuneSettings(epochs=3, device="cpu"),
        progress=False,
        objective=Draws(),
        objective_weight=1.0,
        brain_weight=0.0,
    )
    assert len({row["validation_loss"] for row in log}) == 1 and {
        row["validation_correlation"] for row in log
    } == {None}


def test_processes_that_found_different_checkpoints_are_refused(backbone, pairs, tmp_path):
    class Disagreeing(SingleProcess):
        processes = 2

        def all_reduce_sum(self, tensor):
            return 2 * tensor + 1

    with pytest.raises(RunError, match="different checkpoints"):
        tune(
            BrainTuner(backbone, PEOPLE),
            pairs[:2],
            None,
            mse,
            TuneSettings(device="cpu"),
            folder=tmp_path,
            progress=False,
            team=Disagreeing(TuneSettings(device="cpu")),
        )


def test_tensorboard_if_installed_else_said(backbone, pairs, tmp_path):
    go = lambda: tune(
        BrainTuner(backbone, PEOPLE),
        pairs[:2],
        None,
        mse,
        TuneSettings(epochs=2, device="cpu"),
        folder=tmp_path,
        progress=False,
        tensorboard=True,
    )
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(ParameterError, match="pip install tensorboard"):
            go()
    else:
        go()
        assert (
            list((tmp_path / "tensorboard").glob("events.*")) and (tmp_path / "log.csv").is_file()
        )


def test_the_identity_of_a_run_knows_roles_pooling_groups_and_settings_of_the_objective(
    backbone, pairs
):
    class Masks(Name):
        def __init__(self, share):
            super().__init__()
            self.share = share

    key = lambda training=pairs[:2], validation=pairs[2:3], objective=None, **how: run_key(
        MicrobatchLoss(
            BrainTuner(backbone, PEOPLE, seed=1, **how),
            mse,
            objective,
            (1.0, float(objective is not None), 0.0),
        ),
        training,
        validation,
        TuneSettings(),
    )
    shared = dict(heads="shared")
    keys = [
        key(),
        key(pairs[:1], pairs[1:3]),
        key(pairs[:3], []),
        key(pooling="max"),
        key(pooling="last"),
        key(**shared),
        key(**shared, groups={"P3": "a", "P1": "a"}),
        key(objective=Masks(0.2)),
        key(objective=Masks(0.5)),
    ]
    assert len(set(keys)) == len(keys) and key() == keys[0]
