"""What is noticed about the slices of a volume while it is predicted: kept in its record, and said."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slices.classes import Classes
from volumes.blocks import CONSTANT, FLAT, LIMITS, MASK, OUTSIDE, OWN, Blocks
from volumes.three_axes import ThreeAxes
from volumes.volume import Volume

DIFFERENT = 1.5  # times: a slice whose contrast differs by more from that of training is named
LOW_CONTRAST = 0.5  # of the usual contrast of a volume: slices with less are named
OTHER_UNITS = 30.0  # times: contrasts of volume and training that differ by more have other units
SUDDEN = 0.15  # of a slice: so much more or less outside than in the slice before is said
USUAL = 75  # percentile of the contrasts of all slices that is called usual
FEW_NAMES = 3  # slices that a line names


# --- what is kept ---------------------------------------------------------------------------------


def describe_results(volume: Volume, results: Blocks | ThreeAxes, training: dict | None) -> dict:
    """Return what the record of a prediction says about its slices.

    Parameters
    ----------
    volume : Volume
    results : Blocks or ThreeAxes
    training : dict, or None
        Grey values of the slices of training, see `slices.data_folder.training_window`.
    """
    limits = np.array(list(results.slices(LIMITS)))  # (N, 2)
    own = np.array(list(results.slices(OWN)))  # (N, 2)
    is_blank = np.isnan(limits[:, 0])
    stated = [
        None if blank else pair for pair, blank in zip(limits.tolist(), is_blank, strict=True)
    ]
    return {
        "voxel": volume.voxel,
        "blank": int(is_blank.sum()),
        "limits": stated,
        "slices": describe_contrasts(volume, own, training),
        **describe_outside(volume, results),
        "flat_borders": describe_flat_borders(volume, results),
    }


def describe_contrasts(volume: Volume, own: np.ndarray, training: dict | None) -> dict:
    """Return which slices do not look like the others, or like those of training, by name.

    Parameters
    ----------
    volume : Volume
    own : (N, 2) ndarray
        The percentiles of each slice.
    training : dict, or None
    """
    contrasts = own[:, 1] - own[:, 0]
    usual = float(np.percentile(contrasts, USUAL))
    low_contrast = {}
    unlike_training = {}
    for name, limits, contrast in zip(volume.names, own.tolist(), contrasts.tolist(), strict=True):
        file = Path(name).name
        if contrast < LOW_CONTRAST * usual:
            low_contrast[file] = {"contrast": contrast, "limits": limits}
        if training is not None and is_unlike(limits, training):
            times = contrast / training["contrast"]
            unlike_training[file] = {"times_the_contrast": times, "limits": limits}

    return {
        "usual_contrast": usual,
        "low_contrast": low_contrast,
        "unlike_training": unlike_training,
        "training": training,
    }


def is_unlike(limits: list[float], training: dict) -> bool:
    """Return whether the percentiles of a slice lie elsewhere than those of training, or farther apart, or closer."""
    low, high = limits
    least = training["least_contrast"] / DIFFERENT
    most = training["most_contrast"] * DIFFERENT
    if not least <= high - low <= most:
        return True
    reach = (DIFFERENT - 1) * training["contrast"]
    return abs(low - training["low"]) > reach or abs(high - training["high"]) > reach


def describe_outside(volume: Volume, results: Blocks | ThreeAxes) -> dict:
    """Return the share of a volume that lies outside the sample, and slices where it is quite another than before.

    Constant slices are left out of these: above and below the sample there is nothing to be seen.
    """
    outsides = results.slices(OUTSIDE)
    constants = results.slices(CONSTANT)
    shares = []
    changes = {}
    before = None
    for name, outside, is_constant in zip(volume.names, outsides, constants, strict=True):
        share = float(outside.mean()) if outside.size else 0.0
        shares.append(share)
        if is_constant:
            continue
        if before is not None and abs(share - before) > SUDDEN:
            changes[Path(name).name] = [before, share]
        before = share

    return {"outside": float(np.mean(shares)), "outside_changes": changes}


def describe_flat_borders(volume: Volume, results: Blocks | ThreeAxes) -> dict:
    """Return value and share of what may be padding and was taken for sample, by slice."""
    flat = {}
    for name, border in zip(volume.names, results.slices(FLAT), strict=True):
        if np.isfinite(border[0]):
            flat[Path(name).name] = border.tolist()
    return flat


def describe_fractions(results: Blocks | ThreeAxes, classes: Classes) -> dict[str, float]:
    """Return the fraction of each class of label maps among the voxels that were looked at, by name."""
    voxels = np.zeros(max(classes.values) + 1, int)
    for mask in results.slices(MASK):
        voxels += np.bincount(mask.ravel(), minlength=len(voxels))
    of_classes = voxels[list(classes.values)]
    shares = of_classes / max(1, of_classes.sum())
    return dict(zip(classes.names, shares.tolist(), strict=True))


def inside_masks(results: Blocks | ThreeAxes) -> Iterator[np.ndarray]:
    """Yield where each slice of a volume with padding shows the sample: (H, W) uint8, 255 there.

    A constant slice shows none: above and below the sample there is nothing but padding.
    """
    masks = results.slices(MASK)
    outsides = results.slices(OUTSIDE)
    constants = results.slices(CONSTANT)
    for mask, outside, is_constant in zip(masks, outsides, constants, strict=True):
        if outside.size:
            yield np.where(outside, np.uint8(0), np.uint8(255))
        elif is_constant:
            yield np.full_like(mask, 0)
        else:
            yield np.full_like(mask, 255)


# --- what is said ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """The parts of a prediction's record that notes are about."""

    content: dict
    path: Path

    @property
    def count(self) -> int:
        """Slices of the volume."""
        return len(self.content["limits"])

    @property
    def slices(self) -> dict:
        """What `describe_contrasts` found."""
        return self.content["slices"]

    def setting(self, name: str) -> object:
        """Return a setting of the prediction; None where the version that made it did not know it."""
        return self.content["settings"].get(name)


def notes_on_slices(content: dict, path: Path) -> list[str]:
    """Return what to say about slices that look unlike others, or unlike those of training.

    Parameters
    ----------
    content : dict
        Of the record of a prediction.
    path : Path
        Of the record.
    """
    record = _Record(content, path)
    return [
        *notes_on_fractions(record),
        *notes_on_training(record),
        *notes_on_low_contrast(record),
        *notes_on_flat_borders(record),
        *notes_on_outside(record),
    ]


def notes_on_fractions(record: _Record) -> list[str]:
    """Return a line with the fraction of each class, where masks are label maps."""
    fractions = record.content.get("fractions")
    if not fractions:
        return []
    shares = ", ".join(f"{name} {share:.2%}" for name, share in fractions.items())
    return [f"fractions of what was looked at: {shares}"]


def notes_on_training(record: _Record) -> list[str]:
    """Return a line where slices do not look like those of training."""
    unlike = record.slices["unlike_training"]
    if not unlike:
        return []
    training = record.slices["training"]
    first = next(iter(unlike.values()))
    low, high = first["limits"]
    names = first_names(unlike)
    values = (
        f"grey values {low:g} to {high:g} instead of {training['low']:g} to {training['high']:g}"
    )
    is_seen_by_training = record.setting("window") == "training"

    ratio = np.inf
    if training["contrast"]:
        ratio = record.slices["usual_contrast"] / training["contrast"]
    if not 1 / OTHER_UNITS < ratio < OTHER_UNITS:
        advice = "no matter, as long as each is seen by its own percentiles"
        if is_seen_by_training:
            advice = "--window training is wrong for them"
        return [
            f"{names}: {len(unlike)} of {record.count} slices have grey values in other units than "
            f"those of training: {values}; {advice}"
        ]

    advice = "" if is_seen_by_training else "; --window training shows them as training did"
    return [
        f"{names}: {len(unlike)} of {record.count} slices do not look like those of training: "
        f"contrast {first['times_the_contrast']:.3g} times as large, {values} (all in "
        f"{record.path.name}){advice}"
    ]


def notes_on_low_contrast(record: _Record) -> list[str]:
    """Return a line where slices have little contrast."""
    low = record.slices["low_contrast"]
    if not low:
        return []
    first = next(iter(low.values()))
    left = "are" if record.setting("blank") == "auto" else "can be"
    return [
        f"{first_names(low)}: {len(low)} of {record.count} slices have little contrast, "
        f"{first['contrast']:g} where {record.slices['usual_contrast']:g} is usual; air? they {left} "
        "left blank by --blank auto"
    ]


def notes_on_flat_borders(record: _Record) -> list[str]:
    """Return a line where slices have a part at their border that may be padding, and counts as sample."""
    flat = record.content["flat_borders"]
    if not flat:
        return []
    value, share = next(iter(flat.values()))
    return [
        f"{first_names(flat)}: {share:.0%} of the slice are exactly {value:g}, at its border, as in "
        f"{len(flat)} of {record.count} slices, and count as sample; right if it is, else --outside "
        f"{value:g}"
    ]


def notes_on_outside(record: _Record) -> list[str]:
    """Return lines on what lies outside the sample."""
    lines = []
    changes = record.content["outside_changes"]
    if changes:
        before, share = next(iter(changes.values()))
        lines.append(
            f"{first_names(changes)}: what lies outside the sample changes suddenly there, first from "
            f"{before:.0%} to {share:.0%} of the slice; if that is wrong, give its grey value "
            "(--outside VALUE), or --outside none"
        )

    stated = record.setting("outside")
    if record.content["outside"]:
        lines.append(
            f"{record.content['outside']:.1%} of the pixels lie outside the sample and are 0 in the "
            "mask; --outside none looks at them, too"
        )
    elif stated not in ("auto", "none", None):
        lines.append(
            f"no slice holds {stated} at its border, so nothing lies outside: is the value of "
            "--outside right?"
        )

    return lines


def first_names(names: dict) -> str:
    """Return the first few names in words."""
    text = ", ".join(list(names)[:FEW_NAMES])
    if len(names) > FEW_NAMES:
        text += " …"
    return text
