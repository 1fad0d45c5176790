"""Before a run begins, or goes on: read the data, open its folder; and say whether all is as it was then."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from config import AUTO, FREE, Config, checked_value, make_config, stored_config
from datasets import Views, view_options
from runtime.devices import choose_device
from runtime.files import read_json, remove_leftovers, write_json, write_npz
from runtime.loaders import LoaderOptions, make_loader
from runtime.messages import InputError, one_line
from runtime.run_folder import RunFiles, differences, open_run, refuse_edited_settings
from runtime.team import Team, join_team
from slices.data_folder import Data, chosen_scans, describe_data, load_data, used_files
from slices.fingerprint import component_diameters
from slices.options import DataOptions, Reading
from slices.splits import SplitOptions
from slices.windows import parse_outside, read_grey
from training.recipe import MINUTES, RECIPE_FILE, Recipe, configure, read_recipe

LEAST_PARTICLE = 3.0  # blocks: smaller particles are hard to see for a network that works on means
SAMPLE_VIEWS = 8  # of each kind, for the figure
MOST_MINUTES = 10_000  # a week
SCANS_ON_CPU = 40  # that `auto` reads: in the steps of ten minutes no more are seen often

# Settings that `auto` fits to each other: alone, one of them may not be possible.
SIZES = ("patch_size", "downsample", "unshuffle")


def data_options(config: Config) -> DataOptions:
    """Return which slices a run reads, and how."""
    split = SplitOptions(
        how=config.split,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        fold=config.fold,
        seed=config.seed,
    )
    reading = Reading(
        roi=config.roi,
        percentiles=config.percentiles,
        mask_foreground=config.mask_foreground,
        outside=parse_outside(config.outside),
        trust_pairs=config.trust_pairs,
        rim=config.rim,
    )
    return DataOptions(split, config.labels, config.max_unlabelled, reading)


def read_slices(config: Config) -> Data:
    """Return the data that these settings name, read, preprocessed and split."""
    return load_data(Path(config.data), data_options(config))


def files_of(config: Config) -> dict[str, Path]:
    """Return the files of the data folder that a run reads, by their names in it."""
    return used_files(Path(config.data), config.split, config.max_unlabelled)


def prepare(config: Config, resume: bool = False, recipe: Recipe | None = None) -> Data:
    """Read the data and open the run folder.

    `split.json` and `samples.npz` (for the figures) are written to it, and `recipe.json` where the
    settings were chosen for the material. Until this process ends, no other may work in that
    folder.

    Raises
    ------
    InputError
        For whatever is wrong with the data, or with what is in the folder.
    """
    if config.method == AUTO and recipe is None and not (config.run_folder / RECIPE_FILE).exists():
        raise InputError(
            f"--method {AUTO}: its settings are chosen for the slices; give what find_recipe returns"
        )
    data = recipe.data if recipe is not None else None
    if data is None:
        data = read_slices(config)
    device = choose_device(config.device)
    team = join_team(device)
    check_team(config, team)
    if team.leads:
        if device.type != "cpu" or team.size > 1:
            say_that_digits_vary(f"{team.size} processes" if team.size > 1 else device.type)
        open_folder(config, data, resume, recipe)
        for note in [*data.notes, *notes_on_blocks(config, data)]:
            print(note, file=sys.stderr)

    team.wait()
    return data


def check_team(config: Config, team: Team) -> None:
    """Raise `InputError` where the processes of a team cannot share a run with these settings."""
    part = team.part_of_batch(config.batch_size)
    if config.cutmix_p and part == 1:
        raise InputError(
            f"--batch-size {config.batch_size}: leaves one sample to each of {team.size} processes, "
            f"and --cutmix-p mixes the samples of a process; --batch-size {2 * team.size} or more"
        )

    if config.nonfinite == "skip" and team.size > 1:
        raise InputError(
            "--nonfinite skip: is for one process; others would not know of the skipped step"
        )


def say_that_digits_vary(where: str) -> None:
    """Say that two runs with one seed differ in their last digits on other devices than a single CPU."""
    print(
        f"{where}: sums have no fixed order there; the same seed gives the same results but for the "
        "last digits (one process with --device cpu: the same bytes)",
        file=sys.stderr,
    )


def find_recipe(given: dict[str, Any], minutes: float | None = None) -> Recipe:
    """Return the recipe of a run that has been begun, else one for the material.

    Parameters
    ----------
    given : dict
        Settings that were chosen by hand; `data` and `run` are what `Config` says where they are
        not among them.
    minutes : float, optional
        For the whole run; None: `MINUTES`.

    Raises
    ------
    InputError
        When a setting is not possible, the data cannot be read, or other minutes are given than
        those for which the steps of a begun run were chosen.
    """
    if minutes is not None and not 0 < minutes <= MOST_MINUTES:
        raise InputError(f"--minutes {minutes:g}: must be above 0, and at most {MOST_MINUTES}")
    for name in SIZES:
        if name in given:
            checked_value(Config.__dataclass_fields__[name], given[name])
    # Which run, which slices: all that is asked of these settings before the others are chosen.
    others = {name: value for name, value in given.items() if name not in SIZES}
    named = make_config(**{**default_scans(given), **others})
    path = named.run_folder / "config.json"
    if not path.exists():
        data = read_slices(named)
        found = len(chosen_scans(Path(named.data), 0))
        wanted = MINUTES if minutes is None else minutes
        return configure(given, data, wanted, default_scans(given), found)

    refuse_edited_settings(named.run_folder)
    stored = stored_config(path)
    if stored.method != AUTO:
        raise InputError(
            f"{named.run_folder}: was begun with --method {stored.method}; give that, or choose "
            "another --run"
        )
    config = dataclasses.replace(stored, **{**given, "method": AUTO})
    recipe = read_recipe(named.run_folder, config)
    can_compare = minutes is not None and recipe.minutes is not None
    if can_compare and minutes != recipe.minutes:
        raise InputError(
            f"{named.run_folder}: its steps were chosen for {recipe.minutes:g} minutes when it was "
            "begun; leave --minutes out, or choose another --run"
        )
    return recipe


def default_scans(given: dict[str, Any]) -> dict[str, int]:
    """Return how many unlabelled scans are read where nobody says it: on a CPU few, which takes long enough."""
    if "max_unlabelled" in given:
        return {}
    device = choose_device(given.get("device", Config.device))
    return {"max_unlabelled": SCANS_ON_CPU} if device.type == "cpu" else {}


# --- the run folder -------------------------------------------------------------------------------


def open_folder(config: Config, data: Data, resume: bool, recipe: Recipe | None = None) -> None:
    """Open the run folder, or go on in it, and write what is known before training.

    Raises
    ------
    InputError
        Where something else is there, or the data have changed.
    """
    refuse_other_weights(config)
    path = config.run_folder / "config.json"
    # Earlier versions had no setting `outside`.
    is_of_earlier_version = path.exists() and "outside" not in read_json(path)

    files = RunFiles(
        settings=as_json_has_it(config),
        defaults=as_json_has_it(Config()),
        # A data folder may move; that its pixels stayed is compared below.
        free=(*FREE, "data"),
        data=files_of(config),
        beside={} if recipe is None else {RECIPE_FILE: recipe.record()},
    )
    open_run(config.run_folder, files, choose_device(config.device), resume)
    remove_leftovers(config.checkpoint_folder)
    write_split(config, data, is_of_earlier_version)

    stored = read_json(path)
    if stored["data"] != config.data:
        write_json(path, stored | {"data": config.data})
    write_samples(config, data)


def as_json_has_it(config: Config) -> dict:
    """Return settings with lists in the place of tuples."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def refuse_other_weights(config: Config) -> None:
    """Raise `InputError` where the folder of the weights holds some, and the run folder no run."""
    weights = list(config.checkpoint_folder.glob("*.*"))
    if weights and not (config.run_folder / "config.json").exists():
        raise InputError(
            f"{config.checkpoint_folder}: holds weights of another run; move them away, or choose "
            "another --run"
        )


def write_split(config: Config, data: Data, is_of_earlier_version: bool) -> None:
    """Write which slices have which role, with a hash of their pixels; `InputError` where that has changed."""
    path = config.run_folder / "split.json"
    described = describe_data(data)
    if path.exists() and read_json(path) != described:
        if is_of_earlier_version:
            raise InputError(
                f"{config.data}: slices, masks or split are not those of {path}: they changed, or "
                "this version takes something else for padding or foreground than the earlier one "
                "that began the run; choose another --run"
            )
        raise InputError(
            f"{config.data}: slices, masks or split changed since {path}; choose another --run"
        )

    write_json(path, described)


def write_samples(config: Config, data: Data) -> None:
    """Write `samples.npz`: a slice before and after preprocessing, and some views, for the figures."""
    arrays = {}
    if config.downsample > 1:
        arrays["patch_size"] = np.array(config.patch_size)
    for kind, slices in (("labelled", data.train), ("unlabelled", data.unlabelled)):
        views = Views(slices, view_options(config, class_count=data.class_count))
        seed = [config.seed, *b"figure", *kind.encode()]
        batch = next(make_loader(views, LoaderOptions(SAMPLE_VIEWS, seed)))
        for name, tensor in batch.items():
            plane = tensor[:, 0]
            if name == "mask" and tensor.shape[1] > 1:
                if data.classes is not None:
                    arrays[f"{kind}_labels"] = labels_of_shares(tensor.numpy())
                    continue
                # Of binary masks without their rim the share of the foreground.
                plane = tensor[:, 1]
            eight_bit = (plane * 255).round().byte()
            arrays[f"{kind}_{name}"] = eight_bit.numpy()

    first = data.train[0]
    if data.classes is not None:
        arrays["classes"] = np.array(data.classes.names)
        arrays["colours"] = np.array(data.classes.shown_colours, np.uint8)
    if first.painted is not None:
        arrays["painted"] = first.counted
    write_npz(
        config.run_folder / "samples.npz",
        raw=read_grey(first.path, parse_outside(config.outside)).image,
        image=first.image,
        mask=np.asarray(first.mask),
        percentiles=np.array(config.percentiles),
        **arrays,
    )


def labels_of_shares(shares: np.ndarray) -> np.ndarray:
    """Return which class most of a pixel is painted with: (B, K, H, W) shares → (B, H, W) uint8.

    1 is the first class, and 0 where most of the pixel is not painted.
    """
    is_painted = shares.sum(axis=1) >= 0.5
    return ((shares.argmax(axis=1) + 1) * is_painted).astype(np.uint8)


# --- particles and the resolution of the network --------------------------------------------------


def notes_on_blocks(config: Config, data: Data) -> list[str]:
    """Return a line where most particles are too small for a network that works on block means.

    With `auto` there is none: its recipe says what is left of the mask that is painted.
    """
    if config.downsample == 1 or config.method == AUTO:
        return []
    parts = [np.empty(0)]
    for s in data.train:
        # Where paint ends, no particle does.
        if s.painted is None:
            for index in range(1, data.class_count):
                parts.append(component_diameters(np.asarray(s.mask == index)))
    diameters = np.concatenate(parts)
    if len(diameters) == 0:
        return []
    median = np.median(diameters)
    if median >= LEAST_PARTICLE * config.downsample:
        return []
    fitting = max(1, int(median / LEAST_PARTICLE))
    return [
        f"half of the labelled particles are less than {median:.1f} px across, which is "
        f"{median / config.downsample:.1f} blocks of --downsample {config.downsample}: --downsample "
        f"{fitting} shows them better"
    ]


# --- is a run still what it was? ------------------------------------------------------------------


def verify(folder: Path) -> int:
    """Say whether data, code, weights and versions at hand are those of a run.

    Returns
    -------
    int
        0, or 1 with a line for each difference.
    """
    config = stored_config(folder / "config.json")
    weights = {path.name: path for path in config.checkpoint_folder.glob("best_*.safetensors")}
    device = choose_device(config.device)
    lines = differences(folder, device, files_of(config), weights, config.precision)
    if not lines:
        print(f"{folder}: settings, data, code, weights and versions are those of the run")
        return 0
    for line in lines:
        print(one_line(line))
    return 1
