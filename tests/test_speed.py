"""The benchmarks: work counted as in the papers, races paired by round, and contenders that compute the same."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import contenders, limits, scaling, speed
from benchmarks.contenders import ABLATIONS, OURS, RACES, SCALES, make_contender
from config import Config
from demo_data import write_demo
from runtime import devices, messages

pytestmark = pytest.mark.slow

# --- limits ---------------------------------------------------------------------------------------------------


def test_work_of_the_classic_recipe():
    supervised, semi = (limits.step_work(Config(), semi) for semi in (False, True))
    assert supervised.flop == pytest.approx(
        4 * 3 * 120.9e9, rel=2e-3
    )  # forward once, backward twice
    assert 2.0 < semi.flop / supervised.flop < 2.0 + 1 / 3  # teacher forward; frozen blocks save
    everything = limits.step_work(Config(freeze=()), semi=True)
    assert everything.flop == pytest.approx(supervised.flop * (2 + 1 / 3), rel=2e-3)
    assert limits.image_work(64, 768).flop == pytest.approx(25 * 120.9e9, rel=2e-3)
    assert limits.image_work(64, 100).flop == pytest.approx(
        120.9e9, rel=2e-3
    )  # mirrored to one window


def test_bytes_are_the_operands_of_the_convolutions_and_what_the_optimizer_moves():
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)
    x = torch.rand(2, 3, 8, 8)
    work = limits.count(lambda: convolution(x).sum().backward(), updated=100, averaged=10)
    image, weight, output = 2 * 3 * 64, 5 * 3 * 9, 2 * 5 * 64
    assert work.elements == (image + weight + output) + (
        output + image + 2 * weight
    )  # no gradient of the image
    assert work.bytes(4) == 4 * work.elements + 28 * 100 + 12 * 10
    assert work.flop == 2 * 2 * (2 * 64 * 5 * 3 * 9)


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    work = limits.Work(flop=1e9, elements=1e6, weight_bytes=0)
    assert limits.Ceilings(1e10, 1e12, 4).floor(work) == pytest.approx(0.1)
    assert limits.Ceilings(1e15, 1e7, 2).floor(work) == pytest.approx(0.2)


def test_limits_prints_floors(command, monkeypatch):
    monkeypatch.setattr(limits, "measure_ceilings", lambda device: limits.Ceilings(1e12, 1e11, 4))
    code, out, _ = command("benchmarks.limits", "--device", "cpu", "--base-channels", "8")
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == [
        "supervised step",
        "Mean Teacher step",
        "image of 768² px",
    ]


# --- contenders -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("bench") / "demo"
    write_demo(folder, scans=2, labelled=3)
    return Config(
        data=str(folder), device="cpu", num_workers=0, base_channels=2, patch_size=64, batch_size=2
    )


@pytest.mark.parametrize(
    ("race", "peer"),
    [
        (race, peer)
        for race in RACES
        for peer in RACES[race]
        if peer != OURS and "Unet" not in peer and "UNet" not in peer
    ],
)
def test_peers_compute_the_same(settings, race, peer, monkeypatch):
    monkeypatch.setattr("benchmarks.contenders.IMAGE", 100)
    ours, theirs = (make_contender(race, name, settings) for name in (OURS, peer))
    calls, tolerance = {"loader": (1, 1e-5), "image": (1, 1e-4)}.get(
        race, (4, 1e-3)
    )  # training amplifies rounding
    for _ in range(calls):
        np.testing.assert_allclose(theirs(), ours(), atol=tolerance)


@pytest.mark.parametrize(
    ("race", "change"),
    [
        (race, change)
        for race in ABLATIONS
        for change in ABLATIONS[race]
        if "compile" not in change and "bfloat16" not in change
    ],
)
def test_ablations_compute_the_same(settings, restored, race, change, monkeypatch):
    monkeypatch.setattr("benchmarks.contenders.IMAGE", 100)
    ours = make_contender(race, OURS, settings)
    before = [ours() for _ in range(3)]
    changed = make_contender(race, change, settings)
    np.testing.assert_allclose([changed() for _ in range(3)], before, atol=1e-3)


def test_without_bfloat16_all_is_float32(settings, restored):
    race, full = "Mean Teacher step alone", dataclasses.replace(settings, precision="float32")
    half = dataclasses.replace(settings, precision="bfloat16")
    before, wanted = (make_contender(race, OURS, some)() for some in (half, full))
    assert 1e-6 < np.abs(before - wanted).max() < 0.1
    np.testing.assert_array_equal(make_contender(race, "without bfloat16", half)(), wanted)


def test_another_network_trains(settings):
    step = make_contender("supervised step", "MONAI BasicUNet", settings)
    losses = [step()[0] for _ in range(8)]
    assert min(losses[4:]) < losses[0]


@pytest.mark.parametrize("axis", [axis for axis in SCALES if axis != "image side [px]"])
def test_every_axis_can_be_measured(settings, axis, monkeypatch):
    monkeypatch.setattr("benchmarks.contenders.IMAGE", 70)
    assert np.isfinite(make_contender(axis, str(SCALES[axis][0][0]), settings)()).all()


# --- races ----------------------------------------------------------------------------------------------------


def test_a_race_runs_in_processes_and_pairs_by_round(settings):
    rows = speed.run_race("loader", list(RACES["loader"]), settings, rounds=2)
    assert rows.groupby("contender")["round"].apply(list).to_dict() == {
        name: [0, 1, 2] for name in RACES["loader"]
    }
    assert rows["difference"].max() < 1e-5
    assert rows["memory_mb"].min() > 100


def test_a_contender_that_cannot_start_is_named(settings, capfd):
    with pytest.raises(messages.InputError, match="plain loader: its process ended"):
        speed.run_race(
            "loader", ["plain loader"], dataclasses.replace(settings, data="none"), rounds=1
        )


def test_a_peer_that_cannot_start_costs_its_own_row_alone(settings, capfd):
    rows = speed.run_race(
        "image", [OURS, "a peer that is not installed"], dataclasses.replace(settings), rounds=2
    )
    table = speed.summarise_races(rows, {}).set_index("contender")
    assert table["ratio"].tolist()[0] == 1.0
    assert table["ratio"].isna().tolist() == [False, True]
    assert "image: a peer that is not installed: its process ended" in capfd.readouterr().err
    assert speed.records(table)[1]["ratio"] is None


class Dies:
    """A contender whose process ends in its second call."""

    def __init__(self, race, name, config):
        self.name, self.calls = name, 0

    def call(self):
        self.calls += 1

    def receive(self):
        if self.name == "peer" and self.calls == 2:
            raise messages.InputError("peer: its process ended")
        return (
            1.0 + (self.name == "peer"),
            5.0,
            np.array([np.nan if self.name == "strange" else 0.0]),
        )

    def end(self):
        pass


def test_rounds_before_a_peer_dies_count_and_a_result_that_is_no_number_is_seen(
    settings, monkeypatch, capsys
):
    monkeypatch.setattr(speed, "Contender", Dies)
    table = speed.summarise_races(
        speed.run_race("image", [OURS, "peer", "strange"], settings, 4), {}
    )
    assert table["rounds"].tolist() == [4, 1, 4]
    assert table["ratio"].tolist() == [1.0, 2.0, 1.0]
    assert table["difference"].isna().tolist() == [False, False, True]
    assert capsys.readouterr().err == "image: peer: its process ended\n"


def test_asking_a_process_that_is_gone_is_no_broken_pipe(settings, capfd):
    contender = speed.Contender(
        "loader", "plain loader", dataclasses.replace(settings, data="none")
    )
    contender.process.join()
    contender.call()
    with pytest.raises(messages.InputError, match="plain loader: its process ended"):
        contender.receive()
    contender.end()


def test_workers_have_less_ready_than_a_call_takes():
    none, four = (dataclasses.replace(Config(), num_workers=workers) for workers in (0, 4))
    races = "loader", "supervised step", "Mean Teacher step", "Mean Teacher step alone", "image"
    assert [contenders.work_of(race, none)[0] for race in races] == [16, 1, 1, 1, 1]
    assert [contenders.work_of(race, four)[0] for race in races] == [160, 80, 80, 1, 1]
    floors = speed.floors_of(four, limits.Ceilings(1e12, 1e12, 4))
    assert floors["Mean Teacher step"] == pytest.approx(80 * floors["Mean Teacher step alone"])


def test_a_call_on_a_gpu_is_many_steps_and_wide_networks_are_measured_there(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(devices, "choose_device", lambda _: gpu)
    config = dataclasses.replace(Config(), num_workers=0)
    assert contenders.work_of("Mean Teacher step alone", config) == (20, "steps")
    assert contenders.work_of("supervised step", config) == (20, "steps")
    assert {64, 128} <= set(contenders.values_of("base channels", gpu))
    assert not {64, 128} & set(contenders.values_of("base channels", torch.device("cpu")))
    assert contenders.values_of("slices", gpu) == SCALES["slices"][0]


def test_a_change_that_changes_nothing_here_does_not_run():
    cpu, gpu = (
        set(contenders.ablations("Mean Teacher step alone", torch.device(d)))
        for d in ("cpu", "cuda")
    )
    assert cpu - gpu == {"without kept memory", "without own normalisation"}
    assert gpu - cpu == {"without bfloat16"}
    assert contenders.ablations("loader", torch.device("cpu")) == []


def rows_of(times: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "race": "image",
                "contender": name,
                "round": number,
                "seconds": seconds,
                "memory_mb": 5.0,
                "difference": 0.0 if name == OURS else 1e-6,
            }
            for name, series in times.items()
            for number, seconds in enumerate(series)
        ]
    )


def test_ratios_are_those_of_the_rounds_and_the_first_call_does_not_count():
    rows = rows_of({OURS: [99.0, 1.0, 2.0, 4.0], "peer": [99.0, 3.0, 4.0, 4.0]})
    rows = rows.iloc[
        [0, 4, 5, 1, 6, 2, 3, 7]
    ]  # in turn, the peer first in the first round that counts
    table = speed.summarise_races(rows, {"image": 0.5}).set_index("contender")
    assert table.loc["peer", ["ratio", "low", "high"]].tolist() == [2.0, 1.0, 3.0]
    assert table.loc[OURS, ["seconds", "ratio", "floor"]].tolist() == [2.0, 1.0, 4.0]
    text = speed.describe(table.reset_index())
    assert "2.00 (1.00–3.00)" in text


def test_results_are_written_with_what_made_them(command, monkeypatch, workplace):
    monkeypatch.setattr(speed, "RESULTS", workplace)
    monkeypatch.setattr(speed, "measure_ceilings", lambda device: limits.Ceilings(1e11, 1e10, 4))
    monkeypatch.setattr(speed, "write_demo", lambda *a, **k: None)
    monkeypatch.setattr(
        speed,
        "run_race",
        lambda race, names, config, rounds: rows_of(
            {name: [1.0] * (rounds + 1) for name in names}
        ).assign(race=race),
    )
    code, _, err = command("benchmarks.speed", "--device", "cpu")
    assert code == 0, err
    (path,) = workplace.glob("*.json")
    result = json.loads(path.read_text())
    cpu = torch.device("cpu")
    assert [(row["race"], row["contender"]) for row in result["table"]] == [
        (race, name) for race in RACES for name in [*RACES[race], *contenders.ablations(race, cpu)]
    ]
    assert result["settings"]["base_channels"] == 16
    assert {"environment", "processor", "ceilings", "floors", "rounds"} <= set(result)
    assert result["call"]["loader"] == [16, "batches"]
    before = path.read_bytes()
    part = "--device", "cpu", "--races", "image"
    assert command("benchmarks.speed", *part)[::2] == (
        2,
        "error: --races: needs an --output of its own\n",
    )
    assert (
        command("benchmarks.speed", *part, "--no-ablation", "--output", workplace / "part.json")[0]
        == 0
    )
    assert len(json.loads((workplace / "part.json").read_text())["table"]) == len(RACES["image"])
    assert path.read_bytes() == before
    assert command("benchmarks.speed", "--races", "tennis")[::2] == (
        2,
        "error: no such race: tennis\n",
    )
    assert command("benchmarks.speed", "--rounds", "0")[::2] == (
        2,
        "error: --rounds: expected 1 or more\n",
    )


def test_what_was_raced_is_kept_when_a_later_race_fails(command, monkeypatch, workplace):
    monkeypatch.setattr(speed, "measure_ceilings", lambda device: limits.Ceilings(1e11, 1e10, 4))
    monkeypatch.setattr(speed, "write_demo", lambda *a, **k: None)

    def run_race(race, names, config, rounds):
        if race == "image":
            raise messages.InputError("this project: its process ended")
        return rows_of({names[0]: [1.0, 1.0], names[1]: [np.nan]}).assign(race=race)

    monkeypatch.setattr(speed, "run_race", run_race)
    code, _, err = command(
        "benchmarks.speed", "--device", "cpu", "--output", workplace / "some.json"
    )
    assert (code, err) == (2, "error: this project: its process ended\n")
    assert not (workplace / "some.json").exists()
    result = json.loads((workplace / "some.partial.json").read_text())
    assert list(dict.fromkeys(row["race"] for row in result["table"])) == [
        race for race in RACES if race != "image"
    ]
    assert result["table"][1]["seconds"] is None


def test_scaling_writes_table_and_figure(command, monkeypatch, workplace):
    monkeypatch.setattr(speed, "RESULTS", workplace)
    monkeypatch.setattr(speed, "write_demo", lambda *a, **k: None)

    def run_race(axis, names, config, calls):
        if (axis, names) == ("batch size", ["16"]):
            raise messages.InputError("16: its process ended")
        return rows_of({names[0]: [9.0, 1.0 + int(names[0]), 2.0 + int(names[0])]})

    monkeypatch.setattr(scaling, "run_race", run_race)
    code, _, err = command("benchmarks.scaling", "--device", "cpu")
    assert code == 0
    assert err == "batch size 16: its process ended\n"
    (path,) = workplace.glob("*_scaling.json")
    result = json.loads(path.read_text())
    table = pd.DataFrame(result["table"])
    assert table.groupby("axis", sort=False)["value"].apply(list).to_dict() == {
        axis: [
            value
            for value in contenders.values_of(axis, torch.device("cpu"))
            if (axis, value) != ("batch size", 16)
        ]
        for axis in SCALES
    }
    assert table["seconds"].iloc[0] == 2.5
    assert {"environment", "processor", "settings"} <= set(result)
    assert path.with_suffix(".png").stat().st_size > 5000
    part = "--device", "cpu", "--axes", "workers"
    assert command("benchmarks.scaling", *part)[::2] == (
        2,
        "error: --axes: needs an --output of its own\n",
    )
    assert command("benchmarks.scaling", *part, "--output", workplace / "part.json")[0] == 0
    assert (workplace / "part.png").exists()
    assert command("benchmarks.scaling", "--calls", "0")[::2] == (
        2,
        "error: --calls: expected 1 or more\n",
    )
    assert command("benchmarks.scaling", "--axes", "moon")[::2] == (
        2,
        "error: no such axis: moon\n",
    )
