"""Per-slice tables, confidence intervals, paired comparison, and a classical baseline.

    python evaluate.py --pred MASKS --truth MASKS           scores, a row per slice
    python evaluate.py particles MASKS [MASKS …]            sizes and shapes: see `particles.py`
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage, stats
from skimage.filters import gaussian, threshold_otsu

import particles
from outputs import roi_of
from slices import MASK_SUFFIXES, Slice, center_patch, crop_roi, list_files, read_mask
from splits import pair_files
from stitching import predict_images, probability_of
from uncertainty import calibration_error, count_errors, describe_error_rates, error_rates, reliability
from commands import Parser, run_command_line
from utils import (
    InputError, overlap_metrics, quiet_bar, resolve_precision, write_atomically, write_json, write_npz,
)
from volumes import ZARR_FILES, map_reader, mask_reader, open_volume

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
    """Smoothing σ [px] and foreground side (True: bright) of the best smoothed Otsu on labelled slices.

    The threshold that a user would try first, at its best: both choices are made on the training slices.
    """
    scores = {(sigma, bright): np.mean([overlap_metrics(predict_otsu(s.image, sigma, bright), s.mask)["dice"]
                                        for s in slices])
              for sigma in (1.0, 2.0, 4.0, 8.0) for bright in (True, False)}
    return max(scores, key=scores.get)


def predict_otsu(image: np.ndarray, sigma: float, bright: bool) -> np.ndarray:
    """(H, W) bool: the bright or dark side of Otsu's threshold after Gaussian smoothing by `sigma` pixels."""
    smooth = gaussian(image, sigma, preserve_range=True)
    return (smooth > threshold_otsu(smooth)) == bright


def validate(model: torch.nn.Module, slices: list[Slice], device: torch.device, patch_size: int, threshold: float,
             overlap: float | None = None, precision: str = "auto") -> dict[str, float | None]:
    """Mean Dice and IoU per slice, of centre patches or, given an `overlap`, of full images; None without slices."""
    model.eval()
    if not slices:
        return {"dice": None, "iou": None}
    if overlap is None:
        patches = np.stack([center_patch(s.image, patch_size) for s in slices])
        found = probability_of(model, patches, device, precision=precision)
        truths = [center_patch(s.mask, patch_size) for s in slices]
    else:
        found = predict_images(model, (s.image for s in slices), device, patch_size, overlap, precision=precision)
        truths = [s.mask for s in slices]
    scores = [overlap_metrics(p >= threshold, truth) for p, truth in zip(found, truths, strict=True)]
    return {name: float(np.mean([s[name] for s in scores])) for name in ("dice", "iou")}


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
    otsu = [predict_otsu(s.image, sigma, bright) for s in test]
    side = min(CENTRE, patch_size)
    maps, full = {"Otsu": [mask.astype(np.float32) for mask in otsu]}, {"Otsu": otsu}
    patches = {"Otsu": [center_patch(mask, side) for mask in otsu]}
    for method, model in models.items():
        maps[method] = list(predict_images(model, (s.image for s in test), device, patch_size, overlap, tta,
                                           precision=precision))
        full[method] = [probability >= threshold for probability in maps[method]]
        windows = [center_patch(s.image, patch_size) for s in test]
        patches[method] = [center_patch(window, side) >= threshold for window in
                           (probability_of(model, np.stack(windows), device, tta, precision) if test else ())]
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
        for name, measure in (("calibration", reliability), ("thresholds", threshold_scores)):
            table = pd.concat([measure(maps[method], truths).assign(method=method) for method in models])
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

def folder_pairs(pred: Path, truth: Path, foreground: str) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """(file, mask, true mask) of two folders, paired by stem or last number; `InputError` for what has no partner."""
    files = {}
    for name, folder in (("pred", pred), ("truth", truth)):
        files[name] = list_files(folder, MASK_SUFFIXES)
        if not files[name]:
            raise InputError(f"{folder}: no mask found ({', '.join(MASK_SUFFIXES)}); check --{name}")
    pairs, problems = pair_files(files["pred"], files["truth"])
    for predicted in files["pred"]:                                 # the truth may hold more slices
        if predicted not in pairs:
            raise InputError(next(p for p in problems if p.startswith(f"{predicted}: ")))
    for true in pairs.values():
        if list(pairs.values()).count(true) > 1:
            raise InputError(next(p for p in problems if p.startswith(f"{true}: ")))
    for predicted, true in pairs.items():
        masks = read_mask(predicted), read_mask(true, foreground)
        if masks[0].shape != masks[1].shape:
            raise InputError(f"{predicted}: is {masks[0].shape} px, {true} {masks[1].shape}; they must be of one size")
        yield predicted, *masks


def volume_pairs(pred: Path, truth: Path) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """(name, mask, true mask) of the slices of two volumes; `InputError` where they differ in shape."""
    volumes = [open_volume(path) for path in (pred, truth)]
    if volumes[0].shape != volumes[1].shape:
        raise InputError(f"{pred}: has shape {volumes[0].shape}, {truth} {volumes[1].shape}; they must be of one shape")
    readers = [mask_reader(volume) for volume in volumes]
    for i in quiet_bar(range(len(volumes[0])), "evaluate"):
        yield Path(f"{pred.name.partition('.')[0]}_{i:04d}"), *(read(i) for read in readers)


def main() -> None:
    """A row per slice, then the means; or, with `particles`, what is measured there."""
    if sys.argv[1:2] == ["particles"]:
        return particles.main(sys.argv[2:])
    parser = Parser(description="Score predicted masks against true ones, slice by slice.")
    parser.add_argument("--pred", type=Path, required=True, help="folder of predicted masks (.tif, .png, .npy), or a "
                        "volume: .tif stack, zarr")
    parser.add_argument("--truth", type=Path, required=True, help="folder of true masks, paired by stem or last "
                        "number; of a volume the true volume")
    parser.add_argument("--uncertainty", type=Path, help="map that predict.py --uncertainty wrote: are the uncertain "
                        "pixels the wrong ones?")
    parser.add_argument("--output", type=Path, help="write the table to this CSV file")
    parser.add_argument("--pixel-size", type=float, help="side of a pixel [µm]; adds particle sizes")
    parser.add_argument("--mask-foreground", default="auto", choices=["auto", "dark", "bright"],
                        help="which side of a true mask's threshold is foreground (%(default)s)")
    given = parser.parse_args()
    if given.pixel_size is not None and not 0 < given.pixel_size < 1e9:
        raise InputError(f"--pixel-size {given.pixel_size:g}: must be above 0 and below 10⁹ µm")
    if given.output and given.output.is_dir():
        raise InputError(f"{given.output}: is a folder; --output names a .csv file")
    of_files = given.pred.is_dir() and not any((given.pred / name).exists() for name in ZARR_FILES)
    if given.mask_foreground != "auto" and not of_files:
        raise InputError("--mask-foreground: is for folders of painted masks; in volumes foreground is not zero")
    maps = open_volume(given.uncertainty) if given.uncertainty else None
    doubts = maps and map_reader(maps)
    if maps and not of_files and maps.shape != open_volume(given.pred).shape:
        raise InputError(f"{given.uncertainty}: has shape {maps.shape}, {given.pred} {open_volume(given.pred).shape}")
    places = {Path(name).stem: i for i, name in enumerate(maps.names)} if maps and of_files else {}
    rows, counts, roi = [], 0, roi_of(given.pred)
    for i, (name, *whole) in enumerate(folder_pairs(given.pred, given.truth, given.mask_foreground) if of_files
                                       else volume_pairs(given.pred, given.truth)):
        masks = [crop_roi(mask, roi, str(name)) for mask in whole]
        row = {"stem": name.stem, **slice_metrics(*masks)}
        if given.pixel_size:
            for kind, mask in zip(("predicted", "truth"), masks, strict=True):
                found = particles.particle_table(mask, given.pixel_size)
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
