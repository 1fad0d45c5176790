"""Apply checkpoints to a slice, a folder of slices, a stack or a zarr volume: masks out, in the family of the input.

    python predict.py INPUT --checkpoint checkpoints/NAME --output OUT [--probabilities]
    [--uncertainty] [--tta]

Slices are read, predicted and written a block at a time, so memory does not grow with their number.
Blocks wait in `OUT.part` until all are there; only then OUT appears. The same command goes on where
an interrupted one stopped.
"""

import hashlib
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import PRECISIONS, Config
from evaluation.recommendation import recommended_checkpoint
from model_unet import UNet
from runtime.checkpoints import load_checkpoint
from runtime.command_line import Parser, run_command_line
from runtime.devices import choose_device, resolve_precision
from runtime.messages import PROGRESS_SECONDS, InputError
from runtime.team import ALONE, Team, join_team, leave_team
from slices.classes import Classes, classes_of
from slices.reading import parse_roi
from slices.windows import parse_outside
from utils import SlidingWindow, predict_images
from volumes.blocks import (
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
    ahead,
)
from volumes.decisions import Decision
from volumes.outputs import (
    Output,
    alone,
    begin,
    finish,
    keep_finished,
    make_output,
    refuse_leftover_inside,
)
from volumes.reading import open_volume
from volumes.seen_slices import (
    GreyWindow,
    SeeingOptions,
    SeenSlice,
    choose_grey_window,
    see_slice,
)
from volumes.three_axes import (
    ACROSS,
    ThreeAxes,
    check_cubes,
    cut_across,
    planes_of,
)
from volumes.volume import Volume, fingerprint, say_remarks

SETTINGS = (
    "patch_size",
    "overlap",
    "percentiles",
    "threshold",
)  # of a training run, which predictions need
LEAST_THRESHOLD = 1e-4  # probabilities are kept as float16
NOTHING = (np.nan, np.nan)  # in the place of two numbers
MOST_READERS = 4  # threads that read slices
WHOLE_SLICE = (slice(None), slice(None))

CURE = "give a .safetensors file from checkpoints/"


@dataclass(frozen=True)
class Options:
    """What changes a prediction, apart from the checkpoints.

    Attributes
    ----------
    roi, window, outside, blank
        As in `volumes.seen_slices.SeeingOptions`.
    tta, precision
        As in `utils.SlidingWindow`.
    threshold : float or None
        Probability from which a pixel is foreground; None is that of the training run.
    probabilities : bool
        Whether the probability is written, too.
    uncertainty : {"", "total", "spread"}
        A standard deviation that is written, too: of the decision, or of the predictions.
    three_axes : bool
        Whether a volume is predicted along its three axes.
    """

    roi: tuple[int, int, int, int] | None = None
    window: str | tuple[float, float] = "slice"
    tta: bool = False
    threshold: float | None = None
    probabilities: bool = False
    uncertainty: str = ""
    three_axes: bool = False
    precision: str = "auto"
    outside: str = "auto"
    blank: str = "none"

    @property
    def kinds(self) -> list[str]:
        """What is written, the masks last: where they are, the others are."""
        kinds = []
        if self.probabilities:
            kinds.append(PROBABILITY)
        if self.uncertainty:
            kinds.append(UNCERTAINTY)
        return [*kinds, MASK]

    @property
    def seeing(self) -> SeeingOptions:
        """How slices are seen."""
        return SeeingOptions(self.roi, self.window, self.outside, self.blank)


# --- checkpoints ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSettings:
    """How a model was trained, as far as predictions depend on it.

    Attributes
    ----------
    patch_size, overlap, percentiles, threshold
        As in `Config`.
    window : dict, or None
        Grey values of the slices of training, see `slices.data_folder.training_window`.
    quarter_turns : bool
        Whether it has seen slices that were turned by 90°; True where its file does not say.
    classes : Classes, or None
        Of the label maps from which it learned; None where masks were binary.
    """

    patch_size: int
    overlap: float
    percentiles: tuple[float, float]
    threshold: float
    window: dict | None
    quarter_turns: bool = True
    classes: Classes | None = None


def load_model(path: Path, device: torch.device) -> tuple[UNet, ModelSettings]:
    """Return a model in eval mode on `device`, and how it was trained.

    Raises
    ------
    InputError
        When the file is not a checkpoint of this network.
    """
    weights, details = load_checkpoint(path)
    try:
        model = UNet.from_weights(weights).to(device)
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: {error}; {CURE}") from None

    try:
        stated = {name: details["config"][name] for name in SETTINGS}
    except (KeyError, TypeError):
        raise InputError(f"{path}: says not how it was trained; {CURE}") from None

    # A Config checks that these settings are possible.
    try:
        config = Config(**stated, downsample=model.factor, unshuffle=model.unshuffle)
    except InputError as error:
        raise InputError(f"{path}: {error}; {CURE}") from None

    settings = ModelSettings(
        **config.subset(SETTINGS),
        window=details.get("window"),
        quarter_turns=details["config"].get("quarter_turns", True),
        classes=classes_of_model(path, model, details),
    )
    return model, settings


def classes_of_model(path: Path, model: UNet, details: dict) -> Classes | None:
    """Return the classes that a checkpoint names; `InputError` where the network has another number of them."""
    record = details.get("classes")
    if record is None and model.outputs == 1:
        return None
    if not isinstance(record, dict):
        raise InputError(f"{path}: says not which classes it was trained for; {CURE}")
    classes = classes_of(record, str(path))
    outputs = 1 if classes.is_binary else len(classes)
    if model.outputs != outputs:
        raise InputError(
            f"{path}: names {len(classes)} classes, but the network has {model.outputs} outputs; {CURE}"
        )
    return classes


def load_models(
    paths: list[Path], device: torch.device
) -> tuple[torch.nn.ModuleList, ModelSettings]:
    """Return models that are averaged, and how they were trained.

    Raises
    ------
    InputError
        Where they look at slices differently.
    """
    first, settings = load_model(paths[0], device)
    models = [first]
    for path in paths[1:]:
        model, its_settings = load_model(path, device)
        models.append(model)
        refuse_other_view(path, its_settings, paths[0], settings)
        if not its_settings.quarter_turns:
            settings = replace(settings, quarter_turns=False)
        if its_settings.window != settings.window:
            # They were trained on other slices: there is no window that is that of training.
            settings = replace(settings, window=None)

    return torch.nn.ModuleList(models).eval(), settings


def refuse_other_view(
    path: Path, settings: ModelSettings, first_path: Path, first: ModelSettings
) -> None:
    """Raise `InputError` where a model looks at slices in another way than the first one."""
    if settings.classes != first.classes:
        raise InputError(
            f"{path}: was trained for {describe_classes(settings.classes)}, {first_path} for "
            f"{describe_classes(first.classes)}; only models of the same classes can be averaged"
        )
    for name in SETTINGS:
        value = getattr(settings, name)
        expected = getattr(first, name)
        if value != expected:
            raise InputError(
                f"{path}: was trained with {name} {value}, {first_path} with {expected}; only models "
                "of the same view can be averaged"
            )


def describe_classes(classes: Classes | None) -> str:
    """Return in words what a model tells apart."""
    return "binary masks" if classes is None else f"the classes {classes.describe()}"


# --- blocks of slices -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """Models, how they were trained, what is wanted of them, and the processes that share the work."""

    models: torch.nn.ModuleList
    settings: ModelSettings
    options: Options
    device: torch.device
    team: Team = ALONE

    @property
    def threshold(self) -> float:
        """Probability from which a pixel is foreground: as asked for, or that of the training run."""
        if self.options.threshold is None:
            return self.settings.threshold
        return self.options.threshold

    @property
    def decision(self) -> Decision:
        """How probabilities become masks."""
        return Decision(self.threshold, self.settings.classes)

    @property
    def sliding_window(self) -> SlidingWindow:
        """How a slice is predicted."""
        return SlidingWindow(
            self.settings.patch_size,
            self.settings.overlap,
            self.options.tta,
            self.options.precision,
        )


def predict_block(predictor: Predictor, block: list[SeenSlice]) -> list[dict[str, np.ndarray]]:
    """Return what is kept of each slice of a block; see `volumes.blocks` for the names.

    Mask, probability and uncertainty are 0 outside the region of interest, where there is no
    sample, and in blank slices.
    """
    options = predictor.options
    with_spread = options.uncertainty == SPREAD
    images = [seen.image for seen in block if seen.image is not None]
    predictions = predict_images(
        predictor.models, images, predictor.device, predictor.sliding_window, with_spread
    )

    planes = predictor.decision.planes
    results = []
    for seen in block:
        # (planes, H, W): probabilities, and perhaps a standard deviation.
        maps = np.zeros((planes + int(with_spread), *seen.shape), np.float32)
        if seen.image is not None:
            prediction = next(predictions)
            if planes == 2:
                prediction = both_classes(prediction, with_spread)
            maps[:, *place_of(seen, options.roi)] = prediction
        if seen.outside is not None:
            maps[:, seen.outside] = 0
        results.append(results_of_slice(predictor, seen, maps.astype(np.float16)))

    return results


def both_classes(prediction: np.ndarray, with_spread: bool) -> np.ndarray:
    """Return the probabilities of both classes of label maps, where a network gives that of the second one.

    (H, W) → (2, H, W); with the standard deviation (2, H, W) → (3, H, W).
    """
    probability = prediction[0] if with_spread else prediction
    others = [prediction[1]] if with_spread else []
    return np.stack([1 - probability, probability, *others])


def place_of(seen: SeenSlice, roi: tuple[int, int, int, int] | None) -> tuple[slice, slice]:
    """Return rows and columns of the slice that a model sees."""
    if roi is None or seen.image is None or seen.image.shape == seen.shape:
        return WHOLE_SLICE
    top, bottom, left, right = roi
    return slice(top, bottom), slice(left, right)


def results_of_slice(
    predictor: Predictor, seen: SeenSlice, maps: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what is kept of a slice.

    Parameters
    ----------
    predictor : Predictor
    seen : SeenSlice
    maps : (planes, H, W) float16 ndarray
        Its probabilities, and perhaps a standard deviation.
    """
    options, decision = predictor.options, predictor.decision
    # The mask is that of the probability as it is stored, in float16.
    probability = maps[0] if decision.planes == 1 else maps[: decision.planes]
    results = {
        MASK: decision.mask(probability),
        LIMITS: np.array(seen.limits or NOTHING),
        OWN: np.array(seen.own),
        OUTSIDE: np.zeros((0, 0), bool) if seen.outside is None else seen.outside,
        CONSTANT: np.array(seen.is_constant),
        FLAT: np.array(seen.flat_border or NOTHING),
    }
    if options.probabilities:
        results[PROBABILITY] = probability
    if options.uncertainty == TOTAL:
        results[UNCERTAINTY] = decision.uncertainty(probability)
    elif options.uncertainty == SPREAD:
        results[UNCERTAINTY] = maps[-1]

    return results


def predict_blocks(
    predictor: Predictor, blocks: Blocks, see: Callable[[int], SeenSlice], title: str
) -> None:
    """Predict this process's part of the blocks that are not there yet.

    While one is computed, the next is read and the last is written. The bar counts this process's
    slices after those that are there.

    Parameters
    ----------
    predictor : Predictor
    blocks : Blocks
    see : index → SeenSlice
    title : str
        Of the progress bar, which the first process of a team shows.
    """
    team = predictor.team
    missing = team.tell(blocks.missing())
    mine = team.share(missing)
    slices_of_mine = sum(len(block) for block in mine)
    slices_there = sum(len(block) for block in blocks.all if blocks.is_written(block))

    bar = tqdm(
        total=slices_there + slices_of_mine,
        initial=slices_there,
        desc=title,
        unit="slice",
        smoothing=0.1,
        mininterval=PROGRESS_SECONDS,
        disable=not team.leads,
    )
    readers = ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1))
    writer = ThreadPoolExecutor(1)
    with readers, writer, bar:
        seen = ahead(readers, see, itertools.chain(*mine), BLOCK)
        being_written: deque[Future] = deque()
        for block in mine:
            results = predict_block(predictor, list(itertools.islice(seen, len(block))))
            being_written.append(writer.submit(blocks.write, block, results))
            if len(being_written) > 1:
                being_written.popleft().result()
            bar.update(len(block))
        for future in being_written:
            future.result()


# --- all slices -----------------------------------------------------------------------------------


def predict_all(predictor: Predictor, folder: Path, volume: Volume) -> Blocks | ThreeAxes:
    """Return what is found in all slices.

    With `options.three_axes` that is an average with what is found in planes across them.
    """
    settings, options = predictor.settings, predictor.options
    window = choose_grey_window(volume, options.seeing, settings.percentiles, settings.window)

    def see(i: int) -> SeenSlice:
        return see_slice(volume, i, options.seeing, window)

    along = Blocks(folder, volume, predictor.decision.planes)
    if not options.three_axes:
        predict_blocks(predictor, along, see, "predict")
        return along

    # The averages need the probability of each axis, and its spread where that is wanted.
    spread = SPREAD if options.uncertainty == SPREAD else ""
    along_options = replace(options, probabilities=True, uncertainty=spread)
    predictor = replace(predictor, options=along_options)
    predict_blocks(predictor, along, see, "slices")

    inside = region_of(volume, options.roi)
    across = predict_across(predictor, folder, along, see, shape_inside(volume, inside))
    return ThreeAxes(along, across, inside, predictor.decision, options.uncertainty)


def region_of(volume: Volume, roi: tuple[int, int, int, int] | None) -> tuple[slice, slice]:
    """Return rows and columns that are looked at; a slice of the size of the ROI is used as it is."""
    if roi is None:
        return WHOLE_SLICE
    top, bottom, left, right = roi
    if volume.slice_shape == (bottom - top, right - left):
        return WHOLE_SLICE
    return slice(top, bottom), slice(left, right)


def shape_inside(volume: Volume, inside: tuple[slice, slice]) -> tuple[int, int, int]:
    """Return slices, rows and columns of what is looked at."""
    height, width = volume.slice_shape
    rows = len(range(height)[inside[0]])
    columns = len(range(width)[inside[1]])
    return len(volume), rows, columns


def predict_across(
    predictor: Predictor,
    folder: Path,
    along: Blocks,
    see: Callable[[int], SeenSlice],
    shape: tuple[int, int, int],
) -> dict[str, Blocks]:
    """Predict the planes across the slices, along rows and columns.

    What is outside is known from the slices, and 0 in the planes.
    """

    def grey_slices() -> Iterator[np.ndarray]:
        for i in range(shape[0]):
            seen = see(i)
            yield np.zeros(shape[1:], np.uint8) if seen.image is None else seen.image

    if predictor.team.leads:
        cut_across(folder, along.all, grey_slices(), shape)
    predictor.team.wait()

    of_planes = replace(predictor.options, roi=None, outside="none", blank="none")
    predictor = replace(predictor, options=of_planes)
    # The slices were windowed already: 0 stays 0, and 255 stays 255.
    window = GreyWindow(predictor.settings.percentiles, (0, 255))
    across = {}
    for name in ACROSS:
        planes = planes_of(folder, name)
        across[name] = Blocks(folder / name, planes, predictor.decision.planes)

        # As a default, `planes` is that of this round of the loop.
        def see_plane(i: int, planes: Volume = planes) -> SeenSlice:
            return see_slice(planes, i, of_planes.seeing, window)

        predict_blocks(predictor, across[name], see_plane, name)

    return across


# --- the whole of it ------------------------------------------------------------------------------


def predict_volume(
    volume: Volume,
    checkpoints: list[Path],
    output: Path,
    options: Options,
    device: torch.device,
    team: Team = ALONE,
) -> Path:
    """Predict all slices of a volume, or those that an interrupted call left.

    The processes of a team share the blocks of slices; each needs to see the same files.

    Returns
    -------
    Path
        Of the masks.

    Raises
    ------
    InputError
        When the output exists and was made otherwise, or an interrupted one was; as `load_models`
        and `see_slice`.
    """
    models, settings = load_models(checkpoints, device)
    is_single_prediction = len(models) == 1 and not options.tta and not options.three_axes
    if options.uncertainty == SPREAD and is_single_prediction:
        raise InputError(
            "--uncertainty spread: is that of several predictions; add --tta, --three-axes or "
            "further checkpoints"
        )

    if options.tta and not settings.quarter_turns and team.leads:
        print(
            "--tta: this network was trained without quarter turns, as for things that run in one "
            "direction; averages over them may be worse than no averages",
            file=sys.stderr,
        )
    if options.three_axes:
        check_cubes(volume)
    # The precision is settled now: an interrupted prediction that goes on elsewhere shall not mix
    # float32 with bfloat16.
    options = replace(options, precision=resolve_precision(device, options.precision))
    predictor = Predictor(models, settings, options, device, team)
    check_threshold(predictor.threshold)
    if options.threshold is not None and predictor.decision.planes > 2:
        raise InputError(
            "--threshold: has no meaning for several classes; each pixel gets the most probable one"
        )
    identity = identity_of(volume, checkpoints, predictor)
    result = make_output(volume, output, options.kinds, identity, settings.classes)
    if keep_finished(result):
        return result.target
    refuse_leftover_inside(result)
    predict_alone(predictor, result)
    return result.target


def identity_of(volume: Volume, checkpoints: list[Path], predictor: Predictor) -> dict:
    """Return what a result depends on; runs with the same identity continue each other."""
    settings = {
        "patch_size": predictor.settings.patch_size,
        "overlap": predictor.settings.overlap,
        "percentiles": predictor.settings.percentiles,
        **asdict(predictor.options),
        "threshold": predictor.threshold,
    }
    files = []
    for path in checkpoints:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files.append({"file": path.name, "sha256": digest})
    classes = predictor.settings.classes
    named = {} if classes is None else {"classes": classes.by_value().record()}
    return {
        "input": {
            "kind": volume.kind,
            "axes": volume.axes,
            "shape": list(volume.shape),
            "sha256": fingerprint(volume),
        },
        "checkpoints": files,
        # With lists in the place of tuples, as JSON has them.
        "settings": json.loads(json.dumps(settings)),
        **named,
    }


def predict_alone(predictor: Predictor, output: Output) -> None:
    """Predict what is missing while nobody else works on the same output, and let the results appear."""
    team = predictor.team
    with alone(output.part, team.leads):
        if team.leads:
            begin(output)
        team.wait()
        # What the first process has begun is what every process was asked for.
        begin(output, leads=False)
        results = predict_all(predictor, output.part, output.volume)
        team.wait()
        if team.leads:
            for line in finish(output, results, predictor.settings.window):
                print(line, file=sys.stderr)

    team.wait()


# --- command line ---------------------------------------------------------------------------------


def parse_window(text: str) -> str | tuple[float, float]:
    """Return what `--window` states: `slice`, `volume`, `training`, or two grey values."""
    if text in ("slice", "volume", "training"):
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--window {text}: expected slice, volume, training, or the grey values that become "
            "black and white: LOW,HIGH"
        ) from None

    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"--window {text}: LOW must be below HIGH")
    return low, high


def check_threshold(threshold: float) -> None:
    """Raise `InputError` for a probability that does not tell foreground from background."""
    if not LEAST_THRESHOLD <= threshold < 1:
        raise InputError(
            f"--threshold {threshold:g}: must be between 0 and 1, and {LEAST_THRESHOLD:.4f} at least"
        )


def make_parser() -> Parser:
    """Return the options of the command line."""
    parser = Parser(
        description="Segment a slice or a volume with trained checkpoints; masks are uint8, 0 and "
        "255, in the family of the input. Of a network that learned from label maps they hold the "
        "values of the classes, and 0 where nothing was looked at."
    )
    parser.add_argument(
        "input", type=Path, help=".tif slice or stack, folder of slices, zarr array or OME-Zarr"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        nargs="+",
        help="checkpoints/NAME: the model that validation recommends; or a file in it; several, such "
        "as student and teacher, are averaged",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder, .tif or .zarr for the masks"
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write the probability, float16; of the classes of label maps each as a channel",
    )
    parser.add_argument(
        "--uncertainty",
        nargs="?",
        const=TOTAL,
        default="",
        choices=[TOTAL, SPREAD],
        help="also write a standard deviation, float16: total (default), of the decision at the mean "
        "probability p, √(p (1 − p)), or of more than two classes the entropy as a share of the "
        "largest; or spread, of p over checkpoints, windows and, with --tta and --three-axes, "
        "symmetries and axes",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over flips and quarter turns: 8 times the time",
    )
    parser.add_argument(
        "--three-axes",
        action="store_true",
        help="average over slices and planes across them, along rows and columns, of a volume whose "
        "voxels are cubes: 3 times the time",
    )
    parser.add_argument(
        "--roi",
        default="none",
        help="row,end row,column,end column to look at [px] (%(default)s)",
    )
    parser.add_argument(
        "--window",
        default="slice",
        help="grey values that become black and white: percentiles of each slice, as in training "
        "(slice), or of all slices (volume); those of the slices of training (training); or LOW,HIGH "
        "(%(default)s)",
    )
    parser.add_argument(
        "--outside",
        default="auto",
        help="grey value outside the sample, such as -1000 or nan; none; or auto: recognise it "
        "(%(default)s)",
    )
    parser.add_argument(
        "--blank",
        default="none",
        choices=["none", "auto"],
        help="auto: slices with less than half of the usual contrast, such as air, get an empty mask "
        "(%(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="probability from which a pixel is foreground, 0 to 1, where there are two classes "
        "(default: that of the training run)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="of convolutions; auto: bfloat16 on a CUDA GPU that has it, else float32",
    )
    return parser


def main() -> None:
    """Predict every slice of INPUT."""
    arguments = make_parser().parse_args()
    device = choose_device(arguments.device)

    # Wrong values are errors before anything is opened.
    parse_outside(arguments.outside)
    if arguments.threshold is not None:
        check_threshold(arguments.threshold)
    options = Options(
        roi=parse_roi(arguments.roi),
        window=parse_window(arguments.window),
        tta=arguments.tta,
        threshold=arguments.threshold,
        probabilities=arguments.probabilities,
        uncertainty=arguments.uncertainty,
        three_axes=arguments.three_axes,
        precision=arguments.precision,
        outside=arguments.outside,
        blank=arguments.blank,
    )

    team = join_team(device)
    checkpoints = []
    for path in arguments.checkpoint:
        if path.is_dir():
            path, reason = recommended_checkpoint(path)
            if team.leads:
                print(f"{path}: {reason}", file=sys.stderr)
        checkpoints.append(path)

    volume = open_volume(arguments.input)
    say_remarks(volume, are_stacked=options.three_axes)
    target = predict_volume(volume, checkpoints, arguments.output, options, device, team)
    if team.leads:
        print(target)
    leave_team(team)


if __name__ == "__main__":
    run_command_line(main)
