"""Per-slice tables, confidence intervals, paired comparison, and a classical baseline.

    python evaluate.py --pred MASKS --truth MASKS           scores, a row per slice
    python evaluate.py particles MASKS [MASKS …]            sizes and shapes: see `measuring.py`
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage, stats
from skimage.filters import gaussian, threshold_otsu

from evaluation.uncertainty import calibration_error, count_errors, describe_error_rates, error_rates, reliability
from particles import measuring
from particles.field_of_view import inside_file
from runtime.command_line import Parser, run_command_line
from runtime.devices import resolve_precision
from runtime.files import write_atomically, write_json, write_npz
from runtime.messages import InputError, quiet_bar
from slices.data_folder import IMAGES, MASKS, notes_on_pairs
from slices.masks import masks_of_files
from slices.pairing import pair_files
from slices.reading import FOREGROUND, IMAGE_SUFFIXES, MASK_SUFFIXES, Slice, center_patch, crop_roi, list_files
from utils import overlap_metrics, predict_images, probability_of
from volumes.outputs import roi_of
from volumes.reading import (
    ZARR_FILES,
    map_reader,
    masks_of_volume,
    of_one_size,
    open_volume,
    plain_name,
    refuse_unlike,
    say_remarks,
)

SURFACE_TOLERANCE = 2.0  # px: about how well two annotators agree on the rim of a faint particle
CENTRE = 256  # px: side of the scored centre patch, whatever window a recipe looks through
METRICS = ("dice", "iou", "precision", "recall", "surface_dice")


# --- one slice ------------------------------------------------------------------------------------------------

def surface_dice(prediction: np.ndarray, truth: np.ndarray, tolerance: float = SURFACE_TOLERANCE) -> float:
    """Share of both outlines that lies within `tolerance` pixels of the other (normalised surface distance).

    Nikolov et al., 2018, arXiv:1809.04430; recommended beside Dice by Metrics Reloaded, Maier-Hein et al., 2024,
    doi:10.1038/s41592-023-02151-z. Unlike a Hausdorff distance it stays finite and informative for images of
    many particles of which some are missed. 1 when neither image has an outline, 0 when only one has.

    Parameters
    ----------
    prediction, truth : (H, W) bool or 0/1 ndarray
    tolerance : float
        Distance [px] that counts as agreement.
    """
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction.astype(bool), truth.astype(bool))]
    sizes = [int(np.count_nonzero(edge)) for edge in edges]
    if min(sizes) == 0:
        return float(max(sizes) == 0)
    near = sum(int(np.count_nonzero(ndimage.distance_transform_edt(~other)[edge] <= tolerance))
               for edge, other in (edges, edges[::-1]))
    return near / sum(sizes)


def slice_metrics(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """All of `METRICS` and the two foreground fractions for one binary (H, W) prediction."""
    return {**overlap_metrics(prediction, truth), "surface_dice": surface_dice(prediction, truth),
            "fraction_predicted": float(np.mean(prediction)), "fraction_truth": float(np.mean(truth))}


def fit_otsu(slices: list[Slice]) -> tuple[float, bool]:
    """Return smoothing σ [px] and foreground side (True: bright) of the best smoothed Otsu on labelled slices.

    The threshold that a user would try first, at its best: both choices are made on the training slices.
    """
    scores = {}
    for sigma in (1.0, 2.0, 4.0, 8.0):
        for bright in (True, False):
            found = [overlap_metrics(predict_otsu(s, sigma, bright), s.mask)["dice"] for s in slices]
            scores[sigma, bright] = np.mean(found)
    return max(scores, key=scores.get)


def predict_otsu(s: Slice, sigma: float, bright: bool) -> np.ndarray:
    """Return the bright or dark side of Otsu's threshold after Gaussian smoothing by `sigma` pixels: (H, W) bool."""
    smooth = gaussian(s.image, sigma, preserve_range=True)
    if s.outside is None:
        return (smooth > threshold_otsu(smooth)) == bright
    return ((smooth > threshold_otsu(smooth[~s.outside])) == bright) & ~s.outside


def clear_outside(probability: np.ndarray, s: Slice) -> np.ndarray:
    """Return a map with 0 where there is no sample."""
    return probability if s.outside is None else probability * ~s.outside


def validate(model: torch.nn.Module, slices: list[Slice], device: torch.device, patch_size: int, threshold: float,
             overlap: float | None = None, precision: str = "auto") -> dict[str, float | None]:
    """Return Dice and IoU of centre patches or, given an `overlap`, of full images; None without slices.

    Means over slices; but where the truth of one is empty, of the pixels of all slices together. The Dice of an empty
    slice is 0 or 1, by a single pixel, and would drown the others.
    """
    model.eval()
    if not slices:
        return {"dice": None, "iou": None}
    if overlap is None:
        patches = np.stack([center_patch(s.image, patch_size) for s in slices])
        found = probability_of(model, patches, device, precision=precision)
        truths = [center_patch(s.mask, patch_size) for s in slices]
        outside = [None if s.outside is None else center_patch(s.outside, patch_size) for s in slices]
    else:
        found = predict_images(model, (s.image for s in slices), device, patch_size, overlap, precision=precision)
        truths = [s.mask for s in slices]
        outside = [s.outside for s in slices]

    masks = [p >= threshold if out is None else (p >= threshold) & ~out for p, out in zip(found, outside, strict=True)]
    if all(truth.any() for truth in truths):
        scores = [overlap_metrics(mask, truth) for mask, truth in zip(masks, truths, strict=True)]
        return {name: float(np.mean([score[name] for score in scores])) for name in ("dice", "iou")}
    together = [np.concatenate([array.ravel() for array in arrays]) for arrays in (masks, truths)]
    pooled = overlap_metrics(*together)
    return {name: float(pooled[name]) for name in ("dice", "iou")}


def evaluate_models(models: dict[str, torch.nn.Module], test: list[Slice], train: list[Slice], folder: Path,
                    control: str, device: torch.device, patch_size: int, overlap: float, threshold: float,
                    tta: bool = False, precision: str = "auto") -> dict:
    """Score models and smoothed Otsu on test slices, as centre patches and as stitched full images.

    A centre patch is predicted from one window; its inner `CENTRE` pixels are scored, so that recipes with different
    windows are scored on the same pixels.

    Writes `test_patches.csv`, `test_full.csv`, `summary.json` and, for the figures, `predictions.npz` (images,
    masks, probabilities as uint8), `calibration.csv` and `thresholds.csv` to `folder`.

    Parameters
    ----------
    models : dict of method name to model in eval mode
    train : list of Slice
        Where the classical baseline gets its two choices from.
    control : str
        Method that the others are compared with, slice by slice, where it is among the models.

    Returns
    -------
    dict
        The content of `summary.json`.
    """
    truths = [s.mask.astype(bool) for s in test]
    sigma, bright = fit_otsu(train)
    otsu = [predict_otsu(s, sigma, bright) for s in test]
    side = min(CENTRE, patch_size)
    maps, full = {"Otsu": [mask.astype(np.float32) for mask in otsu]}, {"Otsu": otsu}
    patches = {"Otsu": [center_patch(mask, side) for mask in otsu]}
    inside = [np.ones(s.image.shape, bool) if s.outside is None else ~s.outside for s in test]
    inside_patches = [center_patch(where, side) for where in inside]
    for method, model in models.items():
        predicted = predict_images(model, (s.image for s in test), device, patch_size, overlap, tta,
                                   precision=precision)
        maps[method] = [clear_outside(probability, s) for probability, s in zip(predicted, test, strict=True)]
        full[method] = [probability >= threshold for probability in maps[method]]
        patches[method] = []
        if test:
            windows = np.stack([center_patch(s.image, patch_size) for s in test])
            predicted = probability_of(model, windows, device, tta, precision)
            patches[method] = [(center_patch(window, side) >= threshold) & inside
                               for window, inside in zip(predicted, inside_patches, strict=True)]
    stems = [s.stem for s in test]
    tables = {"patches": slice_table(patches, [center_patch(t, side) for t in truths], stems),
              "full": slice_table(full, truths, stems)}
    summary = {"threshold": threshold, "precision": resolve_precision(device, precision),
               "control": control, "otsu": {"sigma": sigma, "bright": bright}}
    for kind, table in tables.items():
        write_atomically(folder / f"test_{kind}.csv", lambda path, t=table: t.to_csv(path, index=False))
        rivals = [m for m in models if m != control] if control in models and test else []
        summary[kind] = {"methods": summarise(table), "paired": [compare(table, m, control) for m in rivals]}
    if models and test:
        seen_truths = [truth[where] for truth, where in zip(truths, inside, strict=True)]
        for name, measure in (("calibration", reliability), ("thresholds", threshold_scores)):
            seen = {method: [probability[where] for probability, where in zip(maps[method], inside, strict=True)]
                    for method in models}
            table = pd.concat([measure(seen[method], seen_truths).assign(method=method) for method in models])
            write_atomically(folder / f"{name}.csv", lambda path, t=table: t.to_csv(path, index=False))
            if name == "calibration":
                summary[name] = {m: calibration_error(t) for m, t in table.groupby("method", sort=False)}
    arrays = {f"{method}_{i}": to_grey(probability, threshold)
              for method, probabilities in maps.items() for i, probability in enumerate(probabilities)}
    arrays |= {f"image_{i}": s.image for i, s in enumerate(test)} | {f"truth_{i}": s.mask for i, s in enumerate(test)}
    write_npz(folder / "predictions.npz", stems=np.array(stems), methods=np.array(list(maps)),
              threshold=np.array(threshold), **arrays)
    write_json(folder / "summary.json", summary)  # last: where it is, the others are
    return summary


def to_grey(probability: np.ndarray, threshold: float) -> np.ndarray:
    """(H, W) uint8, 255 for 1, rounded such that `grey / 255 >= threshold` where the probability is."""
    grey = np.rint(255 * probability)
    darkest = np.argmax(np.arange(256) / 255 >= threshold)  # of the foreground
    return np.where(probability >= threshold, np.maximum(grey, darkest), np.minimum(grey, darkest - 1)).astype(np.uint8)


# --- tables ---------------------------------------------------------------------------------------------------

def slice_table(predictions: dict[str, list[np.ndarray]], truths: list[np.ndarray], stems: list[str]) -> pd.DataFrame:
    """One row per method and slice: `method`, `stem`, `METRICS` and foreground fractions.

    Parameters
    ----------
    predictions : dict of method name to list of (H, W) bool ndarrays, in the order of `truths`
    """
    rows = [{"method": method, "stem": stem, **slice_metrics(mask, truth)} for method, masks in predictions.items()
            for stem, mask, truth in zip(stems, masks, truths, strict=True)]
    return pd.DataFrame(rows, columns=["method", "stem", *METRICS, "fraction_predicted", "fraction_truth"])


def threshold_scores(probabilities: list[np.ndarray], truths: list[np.ndarray]) -> pd.DataFrame:
    """Mean Dice over slices for each `threshold` from 0.05 to 0.95."""
    return pd.DataFrame([{"threshold": t / 100, "dice": np.mean([
        overlap_metrics(p >= t / 100, truth)["dice"] for p, truth in zip(probabilities, truths, strict=True)])}
        for t in range(5, 100, 5)])


def mean_interval(values: np.ndarray, seed: int = 0) -> dict[str, float | None]:
    """Mean with its 95 % percentile bootstrap interval (None for fewer than two values) over slices."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return {"mean": float(values.mean()), "low": None, "high": None}
    interval = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(seed))
    low, high = interval.confidence_interval
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def summarise(table: pd.DataFrame) -> dict[str, dict]:
    """{method: {metric: mean and interval}} in the order of the table's methods."""
    return {method: {metric: mean_interval(rows[metric].to_numpy()) for metric in METRICS}
            for method, rows in table.groupby("method", sort=False)}


def compare(table: pd.DataFrame, method: str, control: str, metric: str = "dice", seed: int = 0) -> dict:
    """Paired difference `method` − `control` over the same slices: mean, 95 % interval, sign-flip test.

    The p-value is two-sided and exact up to 13 slices; with n slices it cannot be below 2/2ⁿ.

    Raises
    ------
    InputError
        When the two do not cover the same slices.
    """
    scores = [table[table["method"] == name].set_index("stem")[metric] for name in (method, control)]
    if scores[0].empty or set(scores[0].index) != set(scores[1].index):
        raise InputError(f"{method} and {control} were not measured on the same slices; evaluate both again")
    difference = (scores[0] - scores[1].reindex(scores[0].index)).to_numpy()
    result = {"method": method, "control": control, "metric": metric, "slices": len(difference),
              **mean_interval(difference, seed), "p": None}
    if len(difference) > 1:
        result["p"] = sign_flip_p(difference, seed)
    return result


def sign_flip_p(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the mean of independent differences under random signs; NaN for a single one.

    Exact up to 13 of them; with n it cannot be below 2/2ⁿ.
    """
    if len(differences) < 2:
        return float("nan")
    test = stats.permutation_test((differences,), np.mean, permutation_type="samples", vectorized=True,
                                  rng=np.random.default_rng(seed))
    return float(test.pvalue)


def describe(comparison: dict) -> str:
    """A comparison in words, with a verdict only where interval and test agree: an interval of few slices is narrow."""
    mean, low, high, p = (comparison[key] for key in ("mean", "low", "high", "p"))
    text = f"{comparison['method']}: {comparison['metric'].replace('dice', 'Dice')} {abs(mean):.3f} " \
           f"{'lower' if mean < 0 else 'higher'} than that of {comparison['control']}"
    if low is None:
        return f"{text}; one slice, no interval."
    verdict = ("better" if mean > 0 else "worse") if p < 0.05 and low * high > 0 else "no clear difference"
    interval = f"{low:+.3f} to {high:+.3f}".replace("-", "−")
    return f"{text} (95 % interval {interval}, p = {p:.3f}, {comparison['slices']} slices): {verdict}."


# --- command line ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Foreground:
    """What is foreground in predicted and in true masks, as `slices.masks.read_mask_as` understands it.

    `images` is the folder of the slices that true masks are painted copies of, where it is known.
    """

    pred: str = "auto"
    truth: str = "auto"
    images: Path | None = None


AS_VALUES_SAY = Foreground()


def folder_pairs(pred: Path, truth: Path, foreground: Foreground = AS_VALUES_SAY,
                 ) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """Yield (file, mask, true mask) of two folders, paired as `pair_files` does; (H, W) uint8, foreground 1.

    Raises
    ------
    InputError
        For predictions without a partner, partners of another size, and as `slices.masks.Masks`.
    """
    files = {}
    for name, folder in (("pred", pred), ("truth", truth)):
        files[name] = list_files(folder, MASK_SUFFIXES)
        if not files[name]:
            raise InputError(f"{folder}: no mask found ({', '.join(MASK_SUFFIXES)}); check --{name}")

    pairing = pair_files(files["pred"], files["truth"])
    pairs = pairing.mask_of
    for predicted in files["pred"]:                                 # the truth may hold more slices
        if predicted not in pairs:
            raise InputError(next(line for line in pairing.problems if predicted.name in line))
    for line in notes_on_pairs(pairing):
        print(line, file=sys.stderr)

    predicted_masks = masks_of_files(list(pairs), foreground.pred, option="--pred-foreground")
    true_files = list(pairs.values())
    image_of = {}
    if foreground.images is not None:
        images = list_files(foreground.images)
        if not images:
            raise InputError(f"{foreground.images}: no slice found ({', '.join(IMAGE_SUFFIXES)}); check --images")
        mask_of = pair_files(images, true_files).mask_of
        image_of = {mask: image for image, mask in mask_of.items()}
    true_masks = masks_of_files(true_files, foreground.truth, [image_of.get(file) for file in true_files])
    for i, (predicted, true) in enumerate(pairs.items()):
        mask, true_mask = predicted_masks[i], true_masks[i]
        if mask.shape != true_mask.shape:
            raise InputError(f"{predicted}: is {mask.shape} px, {true} {true_mask.shape}; they must be of one size")
        yield predicted, mask, true_mask


def volume_pairs(pred: Path, truth: Path, foreground: Foreground = AS_VALUES_SAY,
                 ) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """Yield (name, mask, true mask) of the slices of two volumes; `InputError` where they differ in shape."""
    predicted, true = open_volume(pred), open_volume(truth)
    refuse_unlike(predicted, true)
    say_remarks(predicted, true, are_stacked=True)
    predicted_masks = of_one_size(masks_of_volume(predicted, foreground.pred, option="--pred-foreground"),
                                  predicted.shape[-2:])
    image = None if foreground.images is None else open_volume(foreground.images)
    if image is not None:
        refuse_unlike(image, true)
    true_masks = of_one_size(masks_of_volume(true, foreground.truth, image), true.shape[-2:])
    for i in quiet_bar(range(len(predicted)), "evaluate"):
        yield Path(f"{pred.name.partition('.')[0]}_{i:04d}"), predicted_masks(i), true_masks(i)


def sample_beside(pred: Path, of_files: bool) -> Callable[[int, Path], np.ndarray] | None:
    """Return a reader of where a predicted slice shows the sample, by its number and file; None for everywhere.

    `predict.py` writes that beside its masks.
    """
    path = inside_file(pred)
    if path is None:
        return None
    volume = open_volume(path)
    masks = masks_of_volume(volume)
    places = {plain_name(Path(name)): i for i, name in enumerate(volume.names)}

    def read(i: int, name: Path) -> np.ndarray:
        place = places.get(plain_name(name)) if of_files else i
        if place is None or place >= len(masks):
            raise InputError(f"{path}: does not say where {name} shows the sample; predict again, or remove it")
        return masks[place]
    return read


def main() -> None:
    """A row per slice, then the means; or, with `particles`, what is measured there."""
    if sys.argv[1:2] == ["particles"]:
        return measuring.main(sys.argv[2:])
    parser = Parser(description="Score predicted masks against true ones, slice by slice.")
    parser.add_argument("--pred", type=Path, required=True, help="folder of predicted masks (.tif, .png, .npy), or a "
                        "volume: .tif stack, zarr")
    parser.add_argument("--truth", type=Path, required=True, help="folder of true masks, paired by stem or last "
                        "number; of a volume the true volume")
    parser.add_argument("--uncertainty", type=Path, help="map that predict.py --uncertainty wrote: are the uncertain "
                        "pixels the wrong ones?")
    parser.add_argument("--output", type=Path, help="write the table to this CSV file")
    parser.add_argument("--pixel-size", type=float, help="side of a pixel [µm]; adds particle sizes")
    parser.add_argument("--mask-foreground", default="auto", choices=FOREGROUND, help="what is foreground in the true "
                        "masks: the dark or the bright side, labels (all above 0), or auto, by their values "
                        "(%(default)s)")
    parser.add_argument("--images", type=Path, help="folder or volume of the slices that the true masks are painted "
                        "copies of (default: Original_images beside Original_masks)")
    parser.add_argument("--pred-foreground", default="auto", choices=FOREGROUND, help="the same of the predicted ones")
    given = parser.parse_args()
    if given.pixel_size is not None and not 0 < given.pixel_size < 1e9:
        raise InputError(f"--pixel-size {given.pixel_size:g}: must be above 0 and below 10⁹ µm")
    if given.output and given.output.is_dir():
        raise InputError(f"{given.output}: is a folder; --output names a .csv file")
    folders = [path.is_dir() and not any((path / name).exists() for name in ZARR_FILES)
               for path in (given.pred, given.truth)]
    of_files = folders[0] and (folders[1] or not given.truth.exists())     # a folder beside a stack is a volume, too
    beside = given.truth.with_name(Path(IMAGES).name) if given.truth.name == Path(MASKS).name else None
    images = given.images or (beside if beside is not None and beside.is_dir() else None)
    foreground = Foreground(given.pred_foreground, given.mask_foreground, images)
    maps = open_volume(given.uncertainty) if given.uncertainty else None
    doubts = maps and map_reader(maps)
    if maps and not of_files:
        refuse_unlike(maps, open_volume(given.pred))
    places = {Path(name).stem: i for i, name in enumerate(maps.names)} if maps and of_files else {}
    rows, counts, roi = [], 0, roi_of(given.pred)
    sample = sample_beside(given.pred, of_files)
    pairs_of = folder_pairs if of_files else volume_pairs
    for i, (name, *whole) in enumerate(pairs_of(given.pred, given.truth, foreground)):
        if sample is not None:                                  # where there is none, nothing is scored
            seen = sample(i, name)
            whole = [mask * seen for mask in whole]
        masks = [crop_roi(mask, roi, str(name)) for mask in whole]
        row = {"stem": name.stem, **slice_metrics(*masks)}
        if given.pixel_size:
            for kind, mask in zip(("predicted", "truth"), masks, strict=True):
                found = measuring.particle_table(mask, given.pixel_size)
                row[f"particles_{kind}"] = len(found)
                row[f"median_diameter_um_{kind}"] = found["diameter"].median()
        rows.append(row)
        if maps:
            place = places.get(name.stem, len(maps)) if of_files else i
            doubt = doubts(place) if place < len(maps) else None
            if doubt is None or doubt.shape != whole[0].shape:
                raise InputError(f"{given.uncertainty}: has no map of {name} of {whole[0].shape} px; give what "
                                 "predict.py --uncertainty wrote beside these masks")
            counts = counts + count_errors(crop_roi(doubt, roi), masks[0].astype(bool) != masks[1].astype(bool))
    if roi:
        print(f"inside rows {roi[0]}–{roi[1]}, columns {roi[2]}–{roi[3]}, where {given.pred} was predicted")
    if sample is not None:
        print(f"inside the sample, as {inside_file(given.pred)} says; what lies outside is not scored")
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.4f}".format, max_rows=60))
    for metric in METRICS:
        m = mean_interval(table[metric].to_numpy())
        spread = "" if m["low"] is None else f"  95 % interval {m['low']:.4f} – {m['high']:.4f}"
        print(f"mean {metric:13s}{m['mean']:.4f}{spread}")
    if maps:
        print(describe_error_rates(error_rates(counts)))
    if given.output:
        write_atomically(given.output, lambda path: table.to_csv(path, index=False))


if __name__ == "__main__":
    run_command_line(main)
