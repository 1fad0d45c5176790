"""Apply a checkpoint to slices: a `.tif` or a folder of them, masks out.

    python predict.py INPUT --checkpoint FILE --output OUT [--probabilities] [--tta]
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import tifffile
import torch
from tqdm import tqdm

from model_unet import UNet
from slices import IMAGE_SUFFIXES, crop_roi, list_files, parse_roi, percentile_window, read_image
from stitching import predict_image
from utils import InputError, choose_device, load_checkpoint, run_command_line, write_atomically


def load_model(path: Path, device: torch.device) -> tuple[UNet, dict]:
    """Model in eval mode on `device`, and the settings it was trained with.

    Raises
    ------
    InputError
        When the file is not a checkpoint of this network.
    """
    weights, about = load_checkpoint(path)
    try:
        return UNet.from_weights(weights).to(device), about["config"]
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: {error}; give a .safetensors file from checkpoints/") from None


def predict_slice(model: UNet, image: np.ndarray, settings: dict, device: torch.device, name: str = "image",
                  roi: tuple[int, int, int, int] | None = None, tta: bool = False) -> np.ndarray:
    """Foreground probability of a raw slice, windowed and stitched as in training; 0 where the slice is blank.

    Parameters
    ----------
    image : (H, W) ndarray
        Grey values on any scale.
    settings : dict
        Settings of the training run, as `load_model` returns them.
    roi : (row, end row, column, end column) or None
        Where to look [px]: the percentile window is taken inside, and outside the probability is 0.

    Returns
    -------
    (H, W) float32 ndarray in [0, 1]
    """
    inside = crop_roi(image, roi, name)
    if inside.min() == inside.max():
        return np.zeros(image.shape, np.float32)
    inside = percentile_window(inside, settings["percentiles"], name)
    found = predict_image(model, inside, device, settings["patch_size"], settings["overlap"], tta=tta)
    if inside.shape == image.shape:
        return found
    probability = np.zeros(image.shape, np.float32)
    probability[roi[0]:roi[1], roi[2]:roi[3]] = found
    return probability


def find_slices(source: Path) -> list[Path]:
    """The slices that INPUT names: itself, or the `.tif` files of a folder in natural order."""
    if source.is_dir():
        files = list_files(source)
        if not files:
            raise InputError(f"{source}: holds no .tif slice")
        return files
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    if source.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{source}: is not a .tif slice; give a .tif file or a folder of them")
    return [source]


def output_paths(files: list[Path], source: Path, output: Path) -> dict[Path, tuple[Path, Path]]:
    """Mask and probability file of each input.

    `output` itself and NAME_probability.tif beside it where input and output are single files, else the input's
    name in `output` and in `output`/probabilities.

    Raises
    ------
    InputError
        When an output would replace an input.
    """
    if not source.is_dir() and output.suffix.lower() in IMAGE_SUFFIXES:
        paths = {source: (output, output.with_name(f"{output.stem}_probability.tif"))}
    else:
        paths = {file: (output / file.name, output / "probabilities" / file.name) for file in files}
    inputs = {file.resolve() for file in files}
    for target in itertools.chain(*paths.values()):
        if target.resolve() in inputs:
            raise InputError(f"{target}: would replace the input; choose another --output")
    return paths


def main() -> None:
    """Predict every slice of INPUT; masks are `uint8` 0/255 with the input's name and shape."""
    parser = argparse.ArgumentParser(description="Segment slices with a trained checkpoint.")
    parser.add_argument("input", type=Path, help=".tif slice, or folder of them")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoints/NAME/best_….safetensors")
    parser.add_argument("--output", type=Path, required=True, help="folder for the masks (or a .tif for one slice)")
    parser.add_argument("--probabilities", action="store_true", help="also write probabilities/NAME.tif, float32")
    parser.add_argument("--tta", action="store_true", help="average over flips and quarter turns: 8 times the time")
    parser.add_argument("--roi", default="none", help="row,end row,column,end column to look at [px] (%(default)s)")
    parser.add_argument("--threshold", type=float, help="probability from which a pixel is foreground, 0 to 1 "
                        "(default: that of the training run)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    model, settings = load_model(arguments.checkpoint, device)
    threshold = settings["threshold"] if arguments.threshold is None else arguments.threshold
    if not 0 < threshold < 1:
        raise InputError(f"--threshold {threshold:g}: must be between 0 and 1")
    files = find_slices(arguments.input)
    roi = parse_roi(arguments.roi)
    paths = output_paths(files, arguments.input, arguments.output)
    for file, (target, beside) in tqdm(paths.items(), "predict", unit="slice"):
        probability = predict_slice(model, read_image(file), settings, device, str(file), roi, arguments.tta)
        mask = (probability >= threshold).astype(np.uint8) * 255
        write_atomically(target, lambda path, m=mask: tifffile.imwrite(path, m, compression="zlib"))
        if arguments.probabilities:
            write_atomically(beside, lambda path, p=probability: tifffile.imwrite(path, p))


if __name__ == "__main__":
    run_command_line(main)
