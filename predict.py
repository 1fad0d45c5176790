"""Apply checkpoints to a slice, a folder of slices, a stack or a zarr volume: masks out, in the family of the input.

    python predict.py INPUT --checkpoint FILE [FILE …] --output OUT [--probabilities] [--uncertainty] [--tta]

Slices are read, predicted and written a block at a time, so memory does not grow with their number. Blocks wait in
`OUT.part` until all are there; only then OUT appears. The same command goes on where an interrupted one stopped.
"""

import hashlib
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import Config
from model_unet import UNet
from runtime.checkpoints import load_checkpoint
from runtime.command_line import Parser, run_command_line
from runtime.devices import choose_device, resolve_precision
from runtime.messages import PROGRESS_SECONDS, InputError
from runtime.team import ALONE, Team, join_team, leave_team
from slices.reading import as_floats, parse_roi
from slices.windows import Grey, apply_window, find_flat_border, grey_limits, mark_outside, parse_outside
from utils import predict_images
from volumes.blocks import (
    ACROSS,
    BLOCK,
    CONSTANT,
    FLAT,
    LIMITS,
    MASK,
    OUTSIDE,
    OWN,
    PROBABILITY,
    SPREAD,
    TOTAL,
    UNCERTAINTY,
    Blocks,
    ThreeAxes,
    ahead,
    check_cubes,
    cut_across,
    planes_of,
    total_deviation,
)
from volumes.outputs import INSIDE, LOW_CONTRAST, alone, begin, finish, is_finished, is_there, part_of, targets
from volumes.reading import Volume, fingerprint, open_volume, say_remarks, stamp

SETTINGS = ("patch_size", "overlap", "percentiles", "threshold")  # of a training run, which predictions need
SAMPLED = 32  # slices that a window of the whole volume is taken from


@dataclass(frozen=True)
class Options:
    """What changes a prediction, apart from the checkpoints."""

    roi: tuple[int, int, int, int] | None = None
    window: str | tuple[float, float] = "slice"     # slice, volume, training, or the grey values themselves
    tta: bool = False
    threshold: float = 0.5
    probabilities: bool = False
    uncertainty: str = ""       # total: of the decision; spread: of the predictions
    three_axes: bool = False
    precision: str = "auto"     # of convolutions; see `utils.resolve_precision`
    outside: str = "auto"       # grey value outside the sample; see `slices.windows.parse_outside`
    blank: str = "none"         # auto: slices with a fraction of the usual contrast stay without foreground

    @property
    def kinds(self) -> list[str]:
        """What is written, the masks last: where they are, the others are."""
        return [*[PROBABILITY] * self.probabilities, *[UNCERTAINTY] * bool(self.uncertainty), MASK]


def load_model(path: Path, device: torch.device) -> tuple[UNet, dict]:
    """Model in eval mode on `device`, and the settings it was trained with.

    Raises
    ------
    InputError
        When the file is not a checkpoint of this network.
    """
    weights, about = load_checkpoint(path)
    try:
        model = UNet.from_weights(weights).to(device)
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: {error}; give a .safetensors file from checkpoints/") from None
    try:
        stated = {name: about["config"][name] for name in SETTINGS}
    except (KeyError, TypeError):
        raise InputError(f"{path}: says not how it was trained; give a .safetensors file from checkpoints/") from None
    try:
        config = Config(**stated, downsample=model.factor)
    except InputError as error:
        raise InputError(f"{path}: {error}; give a .safetensors file from checkpoints/") from None
    settings = {name: stated[name] if isinstance(stated[name], list) else getattr(config, name) for name in SETTINGS}
    return model, settings | {"window": about.get("window")}


def load_models(paths: list[Path], device: torch.device) -> tuple[torch.nn.ModuleList, dict]:
    """Models that are averaged, and their common settings; `InputError` where they look at slices differently."""
    loaded = [load_model(path, device) for path in paths]
    settings = loaded[0][1]
    for path, (_, other) in zip(paths, loaded, strict=True):
        for name in SETTINGS:
            if other[name] != settings[name]:
                raise InputError(f"{path}: was trained with {name} {other[name]}, {paths[0]} with {settings[name]}; "
                                 "only models of the same view can be averaged")
    if any(other["window"] != settings["window"] for _, other in loaded):
        settings = settings | {"window": None}                  # trained on other slices: none is the one
    return torch.nn.ModuleList(model for model, _ in loaded).eval(), settings


# --- from a slice to what is found in it ----------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class View:
    """A slice as models see it.

    Attributes
    ----------
    shape : (int, int)
        Of the whole slice.
    image : (H, W) uint8 ndarray, or None
        What lies inside the region of interest; None where there is nothing to see.
    outside : (H, W) bool ndarray, or None
        Of the whole slice: where there is no sample; None where there is sample everywhere.
    limits : (low, high), or None
        The grey values that became 0 and 255.
    own : (low, high)
        The slice's own percentiles, whatever window was taken.
    is_constant : bool
        Whether all pixels of the sample hold one value.
    flat_border : (value, share), or None
        What may be padding and was taken for sample; see `slices.windows.find_flat_border`.
    """

    shape: tuple[int, int]
    image: np.ndarray | None
    outside: np.ndarray | None
    limits: tuple[float, float] | None
    own: tuple[float, float]
    is_constant: bool
    flat_border: tuple[float, float] | None = None


@dataclass(frozen=True)
class Looking:
    """How the slices of a volume are looked at.

    Attributes
    ----------
    percentiles : (low, high)
        Of a slice's grey values, which become 0 and 255 unless `limits` are given.
    limits : (low, high), or None
        Grey values that become 0 and 255 in all slices.
    least_contrast : float
        Slices whose own percentiles are less apart stay blank.
    """

    percentiles: tuple[float, float]
    limits: tuple[float, float] | None = None
    least_contrast: float = 0.0


def read_view(volume: Volume, i: int, options: Options, looking: Looking) -> View:
    """Return slice `i` in 8 bit."""
    name = volume.names[i]
    whole = mark_outside(as_floats(volume.read(i), name), name, parse_outside(options.outside))
    inside = whole.crop(options.roi, name)
    own = grey_limits(inside, looking.percentiles, name)
    low, high = looking.limits or own

    sample = inside.image if inside.outside is None else inside.image[~inside.outside]
    is_constant = sample.size == 0 or bool(sample.min() == sample.max())
    if is_constant or not high > low or own[1] - own[0] < looking.least_contrast:
        return View(whole.image.shape, None, whole.outside, None, own, is_constant)
    flat = find_flat_border(whole.image, whole.outside) if options.outside == "auto" else None
    return View(whole.image.shape, apply_window(inside, low, high), whole.outside, (low, high), own, is_constant, flat)


def sample_slices(volume: Volume, options: Options) -> list[np.ndarray]:
    """Return the grey values of the sample in `SAMPLED` slices spread evenly over the volume, every fourth pixel."""
    values = []
    for i in np.unique(np.linspace(0, len(volume) - 1, SAMPLED).round().astype(int)):
        name = volume.names[i]
        grey = mark_outside(as_floats(volume.read(i), name), name, parse_outside(options.outside))
        grey = grey.crop(options.roi, name)
        outside = None if grey.outside is None else grey.outside[::2, ::2]
        values.append(replace(grey, image=grey.image[::2, ::2], outside=outside).values().ravel())
    return values


def look_at(volume: Volume, options: Options, settings: dict) -> Looking:
    """Return how the slices of a volume are looked at; the volume is sampled only where that takes it.

    Raises
    ------
    InputError
        Where the volume is constant, or a window is asked for that the checkpoint does not know.
    """
    percentiles, training = settings["percentiles"], settings["window"]
    sampled = sample_slices(volume, options) if options.window == "volume" or options.blank == "auto" else []

    limits = None
    if options.window == "volume":
        limits = grey_limits(Grey(np.concatenate(sampled), skip_zeros=False), percentiles, str(volume.path))
        if not limits[1] > limits[0]:
            raise InputError(f"{volume.path}: is constant in all of {len(sampled)} slices looked at; nothing to "
                             "segment")
    elif options.window == "training":
        if training is None:
            raise InputError("--window training: the checkpoint does not say which grey values it was trained on (it "
                             "is of an earlier version, or several that differ); give --window LOW,HIGH")
        limits = training["low"], training["high"]
    elif not isinstance(options.window, str):
        limits = options.window

    least_contrast = 0.0
    if options.blank == "auto":
        pairs = [np.percentile(values, percentiles) for values in sampled if values.size]
        contrasts = [high - low for low, high in pairs]
        least_contrast = LOW_CONTRAST * float(np.percentile(contrasts, 75)) if contrasts else 0.0
    return Looking(percentiles, limits, least_contrast)


def predict_block(models: torch.nn.Module, block: list[View], settings: dict, options: Options,
                  device: torch.device) -> list[dict[str, np.ndarray]]:
    """Return mask, and probability and uncertainty where wanted, of each slice of a block.

    All are 0 outside the region of interest, where there is no sample, and in blank slices.
    """
    images = [view.image for view in block if view.image is not None]
    spread = options.uncertainty == SPREAD
    found = predict_images(models, images, device, settings["patch_size"], settings["overlap"], options.tta, spread,
                           options.precision)
    results = []
    for view in block:
        maps = np.zeros((1 + spread, *view.shape), np.float32)
        if view.image is not None:
            is_whole = view.image.shape == view.shape
            inside = (slice(None),) * 2 if is_whole else (slice(*options.roi[:2]), slice(*options.roi[2:]))
            maps[:, *inside] = next(found)
        if view.outside is not None:
            maps[:, view.outside] = 0

        stored = dict(zip((PROBABILITY, UNCERTAINTY), maps.astype(np.float16), strict=False))
        if options.uncertainty == TOTAL:
            stored[UNCERTAINTY] = total_deviation(stored[PROBABILITY])
        mask = (stored[PROBABILITY] >= np.float32(options.threshold)).astype(np.uint8) * 255
        outside = np.zeros((0, 0), bool) if view.outside is None else view.outside
        results.append({MASK: mask, LIMITS: np.array(view.limits or (np.nan, np.nan)), OWN: np.array(view.own),
                        OUTSIDE: outside, CONSTANT: np.array(view.is_constant),
                        FLAT: np.array(view.flat_border or (np.nan, np.nan))}
                       | {kind: array for kind, array in stored.items() if kind in options.kinds})
    return results


def predict_blocks(blocks: Blocks, mine: list[range], read: Callable[[int], View], models: torch.nn.Module,
                   settings: dict, options: Options, device: torch.device, title: str | None = None) -> None:
    """Predict some blocks: while one is computed, the next is read and the last is written.

    The bar, where it has a title, counts this process's slices after those that are there.
    """
    done = sum(len(block) for block in blocks.all if blocks.path(block).exists()) if title else 0
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as readers, ThreadPoolExecutor(1) as writer, \
            tqdm(total=done + sum(map(len, mine)), initial=done, desc=title, unit="slice", smoothing=0.1,
                 mininterval=PROGRESS_SECONDS, disable=title is None) as bar:
        views = ahead(readers, read, itertools.chain(*mine), BLOCK)
        written = deque()
        for block in mine:
            found = predict_block(models, list(itertools.islice(views, len(block))), settings, options, device)
            written.append(writer.submit(blocks.write, block, found))
            if len(written) > 1:
                written.popleft().result()
            bar.update(len(block))
        for future in written:
            future.result()


def predict_all(folder: Path, volume: Volume, models: torch.nn.Module, settings: dict, options: Options,
                device: torch.device, team: Team) -> Blocks | ThreeAxes:
    """What is found in all slices, with `options.three_axes` on average with what is found in planes across them."""
    read = partial(read_view, volume, options=options, looking=look_at(volume, options, settings))
    kept = replace(options, probabilities=True, uncertainty=SPREAD if options.uncertainty == SPREAD else "")
    kept = kept if options.three_axes else options
    rest = models, settings, kept, device

    def compute(blocks: Blocks, read: Callable[[int], View], title: str) -> Blocks:
        left = team.tell([block for block in blocks.all if not blocks.path(block).exists()])
        predict_blocks(blocks, team.share(left), read, *rest, title if team.leads else None)
        return blocks

    along = compute(Blocks(folder, volume), read, "predict" if not options.three_axes else "slices")
    if not options.three_axes:
        return along
    inside = (slice(*options.roi[:2]), slice(*options.roi[2:])) if options.roi else (slice(None),) * 2
    if options.roi and volume.shape[-2:] == tuple(part.stop - part.start for part in inside):
        inside = (slice(None),) * 2                             # a slice of the size of the ROI is used as it is
    shape = len(volume), *(len(range(*some.indices(n))) for some, n in zip(inside, volume.shape[-2:], strict=True))
    if team.leads:
        def grey(i: int) -> np.ndarray:
            seen = read(i)
            return np.zeros(shape[1:], np.uint8) if seen.image is None else seen.image
        cut_across(folder, along.all, map(grey, range(len(volume))), shape)
    team.wait()

    # What is outside is known from the slices, and 0 in the planes.
    of_planes = replace(kept, roi=None, outside="none", blank="none")
    looking = Looking(settings["percentiles"], (0, 255))
    rest, across = (models, settings, of_planes, device), {}
    for name in ACROSS:
        planes = planes_of(folder, name)
        across[name] = compute(Blocks(folder / name, planes),
                               partial(read_view, planes, options=of_planes, looking=looking), name)
    return ThreeAxes(along, across, inside, options.threshold, options.uncertainty)


# --- the whole of it ------------------------------------------------------------------------------------------

def identity_of(volume: Volume, checkpoints: list[Path], settings: dict, options: Options) -> dict:
    """What a result depends on; runs with the same identity continue each other."""
    view = {name: settings[name] for name in ("patch_size", "overlap", "percentiles")}
    return {"input": {"kind": volume.kind, "axes": volume.axes, "shape": list(volume.shape),
                      "sha256": fingerprint(volume)},
            "checkpoints": [{"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                            for path in checkpoints],
            "settings": json.loads(json.dumps(view | asdict(options)))}  # tuples as JSON has them


def predict_volume(volume: Volume, checkpoints: list[Path], output: Path, options: Options, device: torch.device,
                   team: Team = ALONE) -> Path:
    """Predict all slices of a volume, or those that an interrupted call left; the path of the masks.

    The processes of a team share the blocks of slices; each needs to see the same files.

    Raises
    ------
    InputError
        When the output exists and was made otherwise, or an interrupted one was; as `load_models` and `read_grey`.
    """
    models, settings = load_models(checkpoints, device)
    if options.uncertainty == SPREAD and len(models) == 1 and not options.tta and not options.three_axes:
        raise InputError("--uncertainty spread: is that of several predictions; add --tta, --three-axes or further "
                         "checkpoints")
    if options.three_axes:
        check_cubes(volume)
    # What another device, or no device, would compute in another precision is not mixed with what is there.
    options = replace(options, precision=resolve_precision(device, options.precision))
    found = targets(volume, output, options.kinds)
    identity, target = identity_of(volume, checkpoints, settings, options), found[MASK]
    part = part_of(target)
    if is_finished(found, volume, identity):
        return target
    inside = targets(volume, output, [INSIDE])[INSIDE]
    if is_there(inside, volume) and not part.exists():
        raise InputError(f"{inside}: is left from an earlier prediction, and would be taken for the field of view of "
                         "this one; delete it, or choose another --output")
    with alone(part, team.leads):
        if team.leads:
            begin(part, identity | {"files": stamp(volume)})
        team.wait()
        begin(part, identity | {"files": stamp(volume)}, leads=False)
        results = predict_all(part, volume, models, settings, options, device, team)
        team.wait()
        if team.leads:
            for line in finish(results, volume, found, identity, inside, settings["window"]):
                print(line, file=sys.stderr)
    team.wait()
    return target


def parse_window(text: str) -> str | tuple[float, float]:
    """Return what `--window` states: `slice`, `volume`, `training`, or two grey values."""
    if text in ("slice", "volume", "training"):
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--window {text}: expected slice, volume, training, or the grey values that become black and "
                         "white: LOW,HIGH") from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"--window {text}: LOW must be below HIGH")
    return low, high


def main() -> None:
    """Predict every slice of INPUT."""
    parser = Parser(description="Segment a slice or a volume with trained checkpoints; masks are "
                                     "uint8, 0 and 255, in the family of the input.")
    parser.add_argument("input", type=Path, help=".tif slice or stack, folder of slices, zarr array or OME-Zarr")
    parser.add_argument("--checkpoint", type=Path, required=True, nargs="+", help="checkpoints/NAME/best_….safetensors;"
                        " several, such as student and teacher, are averaged")
    parser.add_argument("--output", type=Path, required=True, help="folder, .tif or .zarr for the masks")
    parser.add_argument("--probabilities", action="store_true", help="also write the probability, float16")
    parser.add_argument("--uncertainty", nargs="?", const=TOTAL, default="", choices=[TOTAL, SPREAD], help="also write "
                        "a standard deviation, float16: total (default), of the decision at the mean probability p, "
                        "√(p (1 − p)); or spread, of p over checkpoints, windows and, with --tta and --three-axes, "
                        "symmetries and axes")
    parser.add_argument("--tta", action="store_true", help="average over flips and quarter turns: 8 times the time")
    parser.add_argument("--three-axes", action="store_true", help="average over slices and planes across them, along "
                        "rows and columns, of a volume whose voxels are cubes: 3 times the time")
    parser.add_argument("--roi", default="none", help="row,end row,column,end column to look at [px] (%(default)s)")
    parser.add_argument("--window", default="slice", help="grey values that become black and white: percentiles of "
                        "each slice, as in training (slice), or of all slices (volume); those of the slices of "
                        "training (training); or LOW,HIGH (%(default)s)")
    parser.add_argument("--outside", default="auto", help="grey value outside the sample, such as -1000 or nan; "
                        "none; or auto: recognise it (%(default)s)")
    parser.add_argument("--blank", default="none", choices=["none", "auto"], help="auto: slices with less than half of "
                        "the usual contrast, such as air, get an empty mask (%(default)s)")
    parser.add_argument("--threshold", type=float, help="probability from which a pixel is foreground, 0 to 1 "
                        "(default: that of the training run)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"], help="of convolutions; "
                        "auto: bfloat16 on a CUDA GPU that has it, else float32")
    given = parser.parse_args()
    device = choose_device(given.device)
    threshold = load_model(given.checkpoint[0], device)[1]["threshold"] if given.threshold is None else given.threshold
    if not 1e-4 <= threshold < 1:
        raise InputError(f"--threshold {threshold:g}: must be between 0 and 1, and 0.0001 at least")
    parse_outside(given.outside)                                # an error before anything is opened
    options = Options(parse_roi(given.roi), parse_window(given.window), given.tta, threshold, given.probabilities,
                      given.uncertainty, given.three_axes, given.precision, given.outside, given.blank)
    team = join_team(device)
    volume = open_volume(given.input)
    say_remarks(volume, are_stacked=given.three_axes)
    target = predict_volume(volume, given.checkpoint, given.output, options, device, team)
    if team.leads:
        print(target)
    leave_team(team)


if __name__ == "__main__":
    run_command_line(main)
