"""What painted slices are like, in numbers: how large and thin things are, and what tells them apart.

    python datasets.py fingerprint data/NAME

Lengths are in pixels of the slice. A quantity that these slices do not have, such as the gap between
parts where there is but one, is None. So are sizes and shapes where slices are painted only in part:
the end of a stroke says nothing about the end of a thing.

Of label maps each class has numbers of its own, as if it were a mask.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from scipy import ndimage, stats
from skimage.feature import structure_tensor
from skimage.measure import perimeter_crofton

from slices.classes import Classes
from slices.reading import Slice, reduce_slice
from utils import overlap_metrics

SCALES = (0, 1, 2, 4, 8, 16)  # px: σ of the neighbourhood that is looked at; 0 is the pixel itself
FACTORS = (1, 2, 3, 4, 6, 8)  # px: sides of the blocks that a network may work on
SAMPLED = 20_000  # pixels of each class and slice, for what tells them apart
MOST_SAMPLED = 400_000  # of each class in all slices
SPECK = 2.0  # px: smaller parts are specks of paint
TILES = 4  # along each side of a slice: parts whose directions are compared
NEIGHBOUR_BLUR = 2.0  # px: σ, so that noise does not hide that slices are alike


@dataclass(frozen=True)
class Fingerprint:
    """What painted slices are like.

    Attributes
    ----------
    slices : int
        How many were looked at.
    foreground : float
        Its share of the sample.
    parts : float or None
        Connected components in a slice.
    diameter, smallest, largest : float or None
        Of components, as circles of their area: median, and the deciles at both ends [px].
    thickness : float or None
        Four times the mean distance of foreground to its outline [px]: the width of a strip (2 px
        for one of 1 px), and two thirds of the diameter of a disc. What the border cuts seems
        thicker than that: its outline is not seen there.
    gap : float or None
        Background along rows and columns between foreground, be it of one part or two: the lowest
        decile [px].
    outline : float or None
        Length of outlines in an area [1/px].
    contrast_to_noise : float or None
        Difference of the mean grey values of both classes, in standard deviations of the noise.
    separation : dict of str to dict of str to float
        How well a single number tells foreground from background: the area under the ROC curve, ½
        to 1, by kind (`grey`, `edges`, `texture`) and by σ of the neighbourhood [px].
    coherence, direction : float
        How much more outlines and texture run in one direction than across it, 0 to 1; and that
        direction, 0 along rows, counted towards columns [degrees].
    coherence_by_chance : float or None
        What coherence would be if the parts of a slice had unrelated directions; None in records of
        earlier versions.
    neighbours : float or None
        Correlation between slices that follow each other in the folder; None for a single one.
    kept : dict of str to float
        Dice of masks that are made of means over blocks, by side of the block: about what a network
        can reach that works on such means. Of foreground or background, whichever is lower: fine
        pores hide in the Dice of a solid that fills the slice. Empty where it is not known.
    lost : dict of str to float
        Share of the parts of which nothing is left in such masks, specks left out. Of a few large
        parts and many small ones, Dice shows only what becomes of the large ones.
    """

    slices: int
    foreground: float
    parts: float | None
    diameter: float | None
    smallest: float | None
    largest: float | None
    thickness: float | None
    gap: float | None
    outline: float | None
    contrast_to_noise: float | None
    separation: dict[str, dict[str, float]]
    coherence: float
    direction: float
    neighbours: float | None
    kept: dict[str, float]
    lost: dict[str, float] = field(default_factory=dict)
    coherence_by_chance: float | None = None


def take_fingerprint(slices: list[Slice], seed: int = 0) -> Fingerprint:
    """Return what painted slices are like.

    Parameters
    ----------
    slices : list of Slice
        With masks, in the order in which they follow each other.
    seed : int
        Of the pixels that are drawn.
    """
    coherence, direction, by_chance = preferred_direction(slices)
    whole = [s for s in slices if s.painted is None]
    if len(whole) < len(slices) and not any(s.mask.any() for s in whole):
        # Slices without a class that others have say nothing of its sizes.
        whole = []
    painted = sum(np.count_nonzero(s.counted) for s in slices)
    return Fingerprint(
        slices=len(slices),
        foreground=sum(int(s.mask.sum()) for s in slices) / painted,
        **sizes_and_shapes(whole),
        contrast_to_noise=contrast_to_noise(slices),
        separation=separation_by_scale(slices, np.random.default_rng(seed)),
        coherence=coherence,
        direction=direction,
        neighbours=likeness_of_neighbours(slices),
        kept={str(factor): dice_of_means(whole, factor) for factor in FACTORS if whole},
        lost={str(factor): lost_parts(whole, factor) for factor in FACTORS if whole},
        coherence_by_chance=by_chance,
    )


def sizes_and_shapes(whole: list[Slice]) -> dict[str, float | None]:
    """Return those numbers of a fingerprint that only slices tell which are painted everywhere."""
    if not whole:
        names = ("parts", "diameter", "smallest", "largest", "thickness", "gap", "outline")
        return dict.fromkeys(names)

    diameters = np.concatenate([component_diameters(s.mask) for s in whole])
    diameters = diameters[diameters >= SPECK]
    gaps = np.concatenate([gaps_between_parts(s.mask, s.inside) for s in whole])
    sample = sum(np.count_nonzero(s.inside) for s in whole)
    outlines = sum(perimeter_crofton(s.mask, directions=4) for s in whole)
    return {
        "parts": len(diameters) / len(whole),
        "diameter": quantile(diameters, 0.5),
        "smallest": quantile(diameters, 0.1),
        "largest": quantile(diameters, 0.9),
        "thickness": mean_thickness(whole),
        "gap": quantile(gaps, 0.1),
        "outline": float(outlines / sample),
    }


def slices_of_class(slices: list[Slice], index: int) -> list[Slice]:
    """Return slices with the masks of one class of label maps."""
    return [replace(s, mask=(s.counted & (s.mask == index)).astype(np.uint8)) for s in slices]


def take_fingerprints(
    slices: list[Slice], classes: Classes | None, seed: int = 0
) -> dict[str, Fingerprint]:
    """Return what painted slices are like: of each class but the background by its name, of binary masks by ``""``.

    Classes that are painted nowhere are left out.
    """
    if classes is None:
        return {"": take_fingerprint(slices, seed)}
    found = {}
    for index in classes.foreground:
        of_class = slices_of_class(slices, index)
        if any(s.mask.any() for s in of_class):
            found[classes.names[index]] = take_fingerprint(of_class, seed)
    return found


def finest(fingerprints: list[Fingerprint]) -> Fingerprint:
    """Return the fingerprint of the class that needs the finest resolution, with what any class loses by blocks."""
    chosen = min(fingerprints, key=lambda f: min(f.kept.values(), default=0.0))
    if not chosen.kept:
        return chosen
    lost = {factor: max(f.lost[factor] for f in fingerprints) for factor in chosen.lost}
    return replace(chosen, lost=lost)


def describe_fingerprint(fingerprint: Fingerprint) -> str:
    """Return a fingerprint as a table of text."""
    rows = fingerprint_rows(fingerprint)
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    lines = [f"{name:{widths[0]}}  {value:>{widths[1]}}  {text}" for name, value, text in rows]
    return "\n".join([f"{fingerprint.slices} painted slices", *lines])


def fingerprint_rows(fingerprint: Fingerprint) -> list[tuple[str, str, str]]:
    """Return a fingerprint in words: what, how much, and what that is."""
    f = fingerprint
    rows = [
        ("foreground", percent(f.foreground), "of what is painted"),
        (
            "parts",
            "unknown" if f.parts is None else f"{f.parts:.0f}",
            f"in a slice: connected components of {px(SPECK)} across or more",
        ),
        (
            "diameter",
            f"{px(f.smallest)} – {px(f.diameter)} – {px(f.largest)}",
            "of components: lowest decile, median, highest decile",
        ),
        ("thickness", px(f.thickness), "of what is painted, on average"),
        ("gap", px(f.gap), "from foreground to foreground: lowest decile"),
        (
            "outline",
            "unknown" if f.outline is None else f"{1000 * f.outline:.1f} px",
            "in 1000 px² of the sample",
        ),
        ("contrast", number(f.contrast_to_noise), "of the mean grey values, in σ of the noise"),
        (
            "direction",
            f"{f.coherence:.2f}",
            f"0: none, 1: all runs at {f.direction:.0f}° to rows, clockwise; by chance: "
            f"{number(f.coherence_by_chance)}",
        ),
        ("neighbours", number(f.neighbours), "correlation of slices that follow each other"),
    ]
    for kind, by_scale in f.separation.items():
        best = max(by_scale, key=lambda sigma: by_scale[sigma])
        text = f"chance that it orders a pair of pixels rightly, best at σ {best} px"
        rows.append((kind, f"{by_scale[best]:.2f}", text))
    for factor, dice in f.kept.items():
        if factor != "1":
            text = "Dice of masks that are made of them"
            if f.lost.get(factor):
                text += f", which lack {percent(f.lost[factor])} of the parts"
            rows.append((f"{factor}×{factor} means", f"{dice:.3f}", text))
    return rows


def percent(share: float) -> str:
    """Return a share in words."""
    return f"{100 * share:.1f} %"


def px(length: float | None) -> str:
    """Return a length in words."""
    return "none" if length is None else f"{length:.1f} px"


def number(value: float | None) -> str:
    """Return a number in words."""
    return "none" if value is None else f"{value:.2f}"


def quantile(values: np.ndarray, share: float) -> float | None:
    """Return a quantile; None of no values."""
    if len(values) == 0:
        return None
    return float(np.quantile(values, share))


# --- how large, thin and near -----------------------------------------------------------------------


def component_diameters(mask: np.ndarray) -> np.ndarray:
    """Return the diameters of circles as large as the connected components of a mask [px]: (N,)."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return diameters_of(labels)


def diameters_of(labels: np.ndarray) -> np.ndarray:
    """Return the diameters of circles as large as the numbered parts of a label image [px]: (N,)."""
    areas = np.bincount(labels.ravel())[1:]
    return np.sqrt(4 * areas / np.pi)


def mean_thickness(slices: list[Slice]) -> float | None:
    """Return four times the mean distance of foreground pixels to their outline [px].

    None where no slice shows an outline.
    """
    distances = [np.empty(0)]
    for s in slices:
        if s.mask.all():
            continue
        # Half a pixel lies between the middle of a pixel and its side.
        to_background = ndimage.distance_transform_edt(s.mask) - 0.5
        distances.append(to_background[s.mask > 0])
    together = np.concatenate(distances)
    if len(together) == 0:
        return None
    return float(4 * together.mean())


def gaps_between_parts(mask: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the lengths of background between foreground along rows and columns [px]: (N,)."""
    lengths = []
    for lines, sample in ((mask, inside), (mask.T, inside.T)):
        # Padding is no background: a gap across it is none.
        values = np.where(sample, lines, 2)
        for line in values:
            ends = np.flatnonzero(np.diff(line)) + 1
            starts = np.concatenate([[0], ends])
            runs = np.diff(np.concatenate([starts, [len(line)]]))
            kinds = line[starts]
            is_gap = kinds[1:-1] == 0
            is_gap &= (kinds[:-2] == 1) & (kinds[2:] == 1)
            lengths.append(runs[1:-1][is_gap])
    return np.concatenate(lengths)


def mask_of_means(mask: np.ndarray, factor: int) -> np.ndarray:
    """Return a mask that was reduced to means over blocks, and interpolated again: (H, W) bool."""
    height, width = mask.shape
    means = reduce_slice(mask.astype(np.uint8) * np.uint8(255), factor)
    full = (means.shape[1] * factor, means.shape[0] * factor)
    return cv2.resize(means, full, interpolation=cv2.INTER_LINEAR)[:height, :width] > 127


def dice_of_means(slices: list[Slice], factor: int) -> float:
    """Return the Dice of masks that are made of means over blocks: of the class where it is lower.

    Each class is averaged over slices. Empty masks, of which any block is a good picture, say
    nothing; 1 where all are.
    """
    of_foreground, of_background = [], []
    for s in slices:
        foreground = s.mask > 0
        background = s.inside & ~foreground
        for mask, scores in ((foreground, of_foreground), (background, of_background)):
            if mask.any():
                made = mask_of_means(mask, factor) & s.inside
                scores.append(overlap_metrics(made, mask)["dice"])

    return min(
        (float(np.mean(scores)) for scores in (of_foreground, of_background) if scores), default=1.0
    )


def lost_parts(slices: list[Slice], factor: int) -> float:
    """Return the share of connected components of which masks that are made of block means show nothing.

    0 where nothing is painted. Specks of paint do not count.
    """
    parts = lost = 0
    for s in slices:
        labels, count = ndimage.label(s.mask, np.ones((3, 3)))
        is_part = diameters_of(labels) >= SPECK
        shown = labels[mask_of_means(s.mask > 0, factor)]
        pixels_shown = np.bincount(shown, minlength=count + 1)[1:]
        parts += int(is_part.sum())
        lost += int((is_part & (pixels_shown == 0)).sum())

    return lost / parts if parts else 0.0


# --- what tells foreground from background --------------------------------------------------------


def contrast_to_noise(slices: list[Slice]) -> float | None:
    """Return the difference of both classes' mean grey values, in standard deviations of the noise.

    None where a class is missing, or where there is no noise.
    """
    differences, deviations = [], []
    for s in slices:
        is_foreground = s.mask > 0
        is_background = s.counted & ~is_foreground
        if is_foreground.any() and is_background.any():
            differences.append(s.image[is_foreground].mean() - s.image[is_background].mean())
            deviations.append(noise_of(s))
    if not differences or np.mean(deviations) == 0:
        return None
    return float(abs(np.mean(differences)) / np.mean(deviations))


def noise_of(s: Slice) -> float:
    """Return the standard deviation of the noise of a slice, in grey values of 8 bits.

    Outlines and slow changes cancel in the difference of two Laplacians: Immerkær, Fast noise
    variance estimation, 1996, doi:10.1006/cviu.1996.0060. Of noise that is correlated over several
    pixels this is a part.
    """
    difference = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    response = ndimage.convolve(s.image.astype(np.float32), difference)
    inner = ndimage.binary_erosion(s.inside, np.ones((3, 3)))
    if not inner.any():
        return 0.0
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(response[inner]).mean())


def separation_by_scale(
    slices: list[Slice], rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Return how well the grey value, edges and texture of a neighbourhood tell foreground, by its σ.

    Each as the area under the ROC curve of that single number, ½ to 1.
    """
    values: dict[str, dict[str, list]] = {"grey": {}, "edges": {}, "texture": {}}
    classes = []
    pixels = max(1, min(SAMPLED, MOST_SAMPLED // len(slices)))
    for s in slices:
        chosen = sample_classes(s, pixels, rng)
        classes.append(s.mask.ravel()[chosen] > 0)
        for kind, sigma, feature in neighbourhood_features(s.image):
            values[kind].setdefault(str(sigma), []).append(feature.ravel()[chosen])

    is_foreground = np.concatenate(classes)
    result: dict[str, dict[str, float]] = {}
    for kind, by_scale in values.items():
        result[kind] = {}
        for sigma, parts in by_scale.items():
            result[kind][sigma] = area_under_curve(np.concatenate(parts), is_foreground)
    return result


def sample_classes(s: Slice, most: int, rng: np.random.Generator) -> np.ndarray:
    """Draw as many pixels of each class as there are, and no more than that: flat indices."""
    drawn = []
    is_foreground = s.mask > 0
    for where in (is_foreground, s.counted & ~is_foreground):
        pixels = np.flatnonzero(where)
        drawn.append(rng.choice(pixels, min(most, len(pixels)), replace=False))
    return np.concatenate(drawn)


def neighbourhood_features(image: np.ndarray) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield grey value, edges and texture at each scale: kind, σ [px], (H, W) float32."""
    grey = image.astype(np.float32)
    yield "grey", 0, grey
    for sigma in SCALES[1:]:
        mean = ndimage.gaussian_filter(grey, sigma)
        yield "grey", sigma, mean
        yield "edges", sigma, ndimage.gaussian_gradient_magnitude(grey, sigma)
        mean_square = ndimage.gaussian_filter(grey**2, sigma)
        deviation = np.sqrt(np.maximum(mean_square - mean**2, 0))
        yield "texture", sigma, deviation


def area_under_curve(values: np.ndarray, is_foreground: np.ndarray) -> float:
    """Return the area under the ROC curve, whichever side is foreground; ½ where a class is missing.

    It is the chance that a pixel of one class has a larger value than one of the other: the share of
    pairs that the U statistic of Mann and Whitney counts.
    """
    foreground, background = values[is_foreground], values[~is_foreground]
    pairs = len(foreground) * len(background)
    if pairs == 0:
        return 0.5
    area = stats.mannwhitneyu(foreground, background).statistic / pairs
    return float(max(area, 1 - area))


# --- direction, and what lies before and behind ------------------------------------------------------


def preferred_direction(slices: list[Slice]) -> tuple[float, float, float]:
    """Return whether things run in one direction.

    From the structure tensor of the smoothed slices, summed over all pixels (Bigün & Granlund,
    1987).

    Returns
    -------
    coherence : float
        How much more they run in one direction than across it, 0 to 1: 0 for material without a
        preferred direction.
    direction : float
        Which one it is, 0 along rows, counted towards columns [degrees].
    by_chance : float
        The coherence to be expected where every part of a slice has a direction of its own. Few
        long grains never lie in all directions.
    """
    # What lies in the same place of several slices may be the same thing.
    tensors = structure_of_tiles(slices).sum(axis=0)
    energy = tensors.trace(axis1=1, axis2=2).sum()
    if energy == 0:
        return 0.0, 0.0, 0.0

    # Grey values change least along what runs there: that is the first of the eigenvectors.
    (least, most), directions = np.linalg.eigh(tensors.sum(axis=0))
    rows, columns = directions[:, 0]
    angle = np.degrees(np.arctan2(rows, columns)) % 180
    coherence = (most - least) / energy

    # Added up, arrows in unrelated directions have the root of their summed squares as length; a
    # tensor is such an arrow, as long as its eigenvalues differ, at twice the angle.
    least_of_tiles, most_of_tiles = np.linalg.eigvalsh(tensors).T
    by_chance = np.sqrt(np.sum((most_of_tiles - least_of_tiles) ** 2)) / energy
    return float(coherence), float(angle), float(by_chance)


def structure_of_tiles(slices: list[Slice]) -> np.ndarray:
    """Return the structure tensor, summed over the pixels of each of `TILES`² parts of each slice.

    Returns
    -------
    (N, TILES², 2, 2) ndarray
    """
    tensors = np.zeros((len(slices), TILES**2, 2, 2))
    for s, of_slice in zip(slices, tensors, strict=True):
        if min(s.image.shape) == 1:
            # A single row of pixels has no directions to choose from.
            continue
        smooth = ndimage.gaussian_filter(s.image.astype(np.float32), 1.5)
        rows_rows, rows_columns, columns_columns = structure_tensor(smooth, sigma=1, order="rc")
        inner = ndimage.binary_erosion(s.inside, iterations=5)
        tensor = np.array([[rows_rows, rows_columns], [rows_columns, columns_columns]]) * inner
        bands = np.array_split(tensor, TILES, axis=2)
        tiles = [tile for band in bands for tile in np.array_split(band, TILES, axis=3)]
        of_slice[:] = [tile.sum(axis=(2, 3)) for tile in tiles]
    return tensors


def likeness_of_neighbours(slices: list[Slice]) -> float | None:
    """Return the mean correlation between slices that follow each other; None for fewer than two of a size."""
    correlations = []
    for first, second in itertools.pairwise(slices):
        if first.image.shape != second.image.shape:
            continue
        inside = first.inside & second.inside
        pair = [
            ndimage.gaussian_filter(s.image.astype(np.float32), NEIGHBOUR_BLUR)[inside]
            for s in (first, second)
        ]
        if all(len(values) > 1 and values.std() > 0 for values in pair):
            correlations.append(np.corrcoef(*pair)[0, 1])
    return float(np.mean(correlations)) if correlations else None
