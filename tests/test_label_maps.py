"""Label maps as other programs write them: values, palettes and colours; nothing is guessed."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from conftest import data_options, disc_slice, write_data, write_label_maps, write_split
from runtime.messages import InputError
from slices.classes import CLASSES_FILE, classes_of
from slices.data_folder import describe_data, load_data, sum_up
from slices.folder_check import check_data
from slices.label_maps import paint_without_rim, read_label_map, suggest_classes
from slices.options import IMAGES, MASKS, Reading
from slices.pictures import Picture, read_picture

VALUES = classes_of({"1": "matrix", "2": "grain", "3": "pore"}, "classes.json")
COLOURS = classes_of({"#0000ff": "matrix", "#ff8000": "grain", "#00ff00": "pore"}, "classes.json")
READING = Reading(None)


def label_map(size: tuple[int, int] = (24, 20)) -> np.ndarray:
    """Values 0 (not labelled) to 3, each in many pixels."""
    return np.random.default_rng(0).integers(0, 4, size).astype(np.uint8)


def in_colours(values: np.ndarray) -> np.ndarray:
    """The same in the colours of `COLOURS`, on black: (H, W, 3) uint8."""
    colours = np.array([(0, 0, 0), *COLOURS.colours], np.uint8)
    return colours[values]


def assert_holds(path: Path, classes, values: np.ndarray) -> None:
    """The file must be read as these values, 0 as not labelled."""
    found = read_label_map(read_picture(path), classes, path.name)
    assert found.classes.dtype == np.uint8
    assert (found.painted == (values > 0)).all()
    assert (found.classes == np.maximum(values.astype(int), 1) - 1).all()


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "uint64", "float32"])
def test_values_of_any_type_are_read(tmp_path, dtype):
    values = label_map()
    tifffile.imwrite(tmp_path / "m.tif", values.astype(dtype))
    np.save(tmp_path / "m.npy", values.astype(dtype))
    for name in ("m.tif", "m.npy"):
        assert_holds(tmp_path / name, VALUES, values)


def test_grey_pngs_and_those_that_repeat_a_value_three_times_are_read(tmp_path):
    values = label_map()
    cv2.imwrite(str(tmp_path / "grey.png"), values)
    cv2.imwrite(str(tmp_path / "sixteen.png"), values.astype(np.uint16))
    cv2.imwrite(str(tmp_path / "thrice.png"), np.dstack([values] * 3))
    cv2.imwrite(str(tmp_path / "grey.bmp"), values)
    for path in tmp_path.iterdir():
        assert_holds(path, VALUES, values)


@pytest.mark.parametrize("is_transparent", [False, True])
def test_a_palette_counts_by_number_or_by_colour_as_classes_are_named(tmp_path, is_transparent):
    """Whatever its colours look like: those of 1 and 2 may be grey."""
    values = label_map()
    image = Image.fromarray(values)
    image.putpalette([0, 0, 0, 0, 0, 255, 255, 128, 0, 0, 255, 0])
    options = {"transparency": 0} if is_transparent else {}
    image.save(tmp_path / "m.png", **options)
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, 1:4] = 257 * np.array(COLOURS.colours, np.uint16).T
    tifffile.imwrite(tmp_path / "m.tif", values, photometric="palette", colormap=colormap)
    for name in ("m.png", "m.tif"):
        assert_holds(tmp_path / name, VALUES, values)
        assert_holds(tmp_path / name, COLOURS, values)


def test_colours_are_read_from_rgb_of_eight_and_sixteen_bits(tmp_path):
    values = label_map()
    colours = in_colours(values)
    tifffile.imwrite(tmp_path / "m.tif", colours, photometric="rgb")
    tifffile.imwrite(tmp_path / "sixteen.tif", 257 * colours.astype(np.uint16), photometric="rgb")
    cv2.imwrite(str(tmp_path / "m.png"), colours[..., ::-1])
    cv2.imwrite(str(tmp_path / "m.bmp"), colours[..., ::-1])
    for path in tmp_path.iterdir():
        assert_holds(path, COLOURS, values)


def test_a_layer_of_paint_is_not_labelled_where_it_is_transparent(tmp_path):
    values = label_map()
    opacity = np.where(values > 0, 255, 0).astype(np.uint8)
    # A soft brush: half of the paint of the first row.
    opacity[0] //= 2
    layer = np.dstack([in_colours(np.maximum(values, 1)), opacity])
    Image.fromarray(layer).save(tmp_path / "m.png")
    expected = values.copy()
    expected[0] = 0
    assert_holds(tmp_path / "m.png", COLOURS, expected)


def test_a_layer_that_is_transparent_everywhere_is_not_painted(tmp_path):
    """Erased paint keeps its colour, and black without opacity is no class that is called black."""
    layer = np.dstack([in_colours(label_map()), np.zeros(label_map().shape, np.uint8)])
    Image.fromarray(layer).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="not a single pixel is labelled"):
        read_label_map(read_picture(tmp_path / "m.png"), COLOURS, "m.png")


def test_other_colours_and_soft_rims_are_not_labelled(tmp_path):
    """Paint over the grey slice, reduced with soft edges: what is neither colour is nothing."""
    large = np.zeros((96, 80), np.uint8)
    large[:48], large[48:, :40], large[48:, 40:] = 1, 2, 3
    soft = cv2.resize(in_colours(large), (19, 25), interpolation=cv2.INTER_AREA)
    grey = np.random.default_rng(0).integers(0, 256, (10, 19, 1)).astype(np.uint8)
    picture = np.concatenate([soft, np.repeat(grey, 3, axis=2)])
    cv2.imwrite(str(tmp_path / "m.png"), picture[..., ::-1])
    found = read_label_map(read_picture(tmp_path / "m.png"), COLOURS, "m.png")
    assert not found.painted[25:].any()
    assert 0.8 < found.painted[:25].mean() < 1
    hard = cv2.resize(large, (19, 25), interpolation=cv2.INTER_NEAREST)
    assert (found.classes[found.painted] == hard[found.painted[:25]] - 1).all()
    assert found.unnamed


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.full((4, 4), 5), "holds 5, which classes.json does not name"),
        (np.array([[1, 2], [3, 255]]), "holds 255, which"),
        (np.array([[1, 2], [3, 2**40]]), "holds 1.09951e"),
        (np.array([[1, 2], [3, 2**64 - 1]], np.uint64), "holds 1.84"),
        (np.array([[1, -1]]), "holds negative numbers, such as -1"),
        (np.array([[1.0, 2.5]]), "holds other than whole numbers, such as 2.5"),
        (np.array([[1.0, np.nan]]), "holds other than whole numbers, such as nan"),
        (np.array([[1.0, np.inf]]), "holds other than whole numbers, such as inf"),
        (np.array([[1, 2j]]), "holds complex128 values"),
        (np.zeros((4, 4), np.uint8), "not a single pixel is labelled"),
    ],
)
def test_what_is_no_label_map_is_refused(values, what):
    with pytest.raises(InputError, match=what) as error:
        read_label_map(Picture(values), VALUES, "m.tif")
    assert str(error.value).startswith("m.tif: ")


def test_colours_are_refused_where_values_are_named_and_the_other_way_round():
    with pytest.raises(InputError, match=r"has colours, but classes.json names values"):
        read_label_map(Picture(in_colours(label_map())), VALUES, "m.png")
    with pytest.raises(InputError, match=r"none of the colours that classes.json names .#0000ff"):
        read_label_map(Picture(label_map()), COLOURS, "m.png")
    with pytest.raises(InputError, match=r"float32 values, but classes.json names colours"):
        read_label_map(Picture(label_map().astype(np.float32)), COLOURS, "m.png")
    alpha = np.arange(480).reshape(24, 20).astype(np.uint8)
    with pytest.raises(InputError, match=r"has transparent parts, but classes.json names values"):
        read_label_map(Picture(label_map(), alpha), VALUES, "m.png")


def test_a_file_of_other_colours_is_refused_and_an_unpainted_one_too():
    others = in_colours(label_map())[..., ::-1]
    others[others == 255] = 254
    with pytest.raises(InputError, match=r"none of the colours that classes.json names.*but #"):
        read_label_map(Picture(others), COLOURS, "m.png")
    with pytest.raises(InputError, match="not a single pixel is labelled"):
        read_label_map(Picture(np.zeros((4, 4, 3), np.uint8)), COLOURS, "m.png")


# --- rims ------------------------------------------------------------------------------------------


def test_the_rim_between_two_classes_is_taken_away_and_no_other():
    classes = np.zeros((20, 30), np.uint8)
    classes[:, 15:] = 1
    painted = np.ones(classes.shape, bool)
    painted[:, :5] = False
    assert paint_without_rim(classes, painted, 0) is painted
    left = paint_without_rim(classes, painted, 2)
    # Columns 14 and 15 touch; 13 and 16 are two pixels from the other class.
    assert (np.flatnonzero(~left[0]) == [0, 1, 2, 3, 4, 13, 14, 15, 16]).all()
    assert not paint_without_rim(classes, painted, 40).any()


# --- folders ---------------------------------------------------------------------------------------


def test_a_folder_of_label_maps_is_loaded_with_its_classes(tmp_path):
    root = write_label_maps(tmp_path / "d", share=0.4)
    data = load_data(root, data_options("blocks", 0.25, reading=READING))
    assert data.classes == VALUES
    assert data.class_count == 3
    for s in data.labelled:
        assert 0.3 < s.painted.mean() < 0.5
        assert set(np.unique(s.mask)) == {0, 1, 2}
        assert not s.mask[~s.painted].any()
        assert (s.counted == s.painted).all()
    # What lies between the paint of training slices is unlabelled; of the others nothing is.
    stems = [s.stem for s in data.unlabelled]
    assert stems == [*(s.stem for s in data.train), "scan_0", "scan_1", "scan_2"]
    assert all(s.mask is None and s.painted is None for s in data.unlabelled)
    assert describe_data(data)["classes"] == VALUES.record()
    assert "% of each painted (matrix" in sum_up(data)


def test_whole_label_maps_are_painted_everywhere(tmp_path):
    data = load_data(
        write_label_maps(tmp_path / "d"), data_options("blocks", 0.25, reading=READING)
    )
    assert all(s.painted is None and s.counted.all() for s in data.labelled)
    assert [s.stem for s in data.unlabelled] == ["scan_0", "scan_1", "scan_2"]
    assert "all of them painted" in sum_up(data)


def test_a_rim_is_left_out_of_training_slices_alone(tmp_path):
    root = write_label_maps(tmp_path / "d")
    options = data_options("blocks", 0.25, reading=Reading(None, rim=2))
    data = load_data(root, options)
    assert all(0.5 < s.painted.mean() < 1 for s in data.train)
    assert all(s.painted is None for s in [*data.val, *data.test])
    with pytest.raises(InputError, match="--rim 90: leaves no paint in"):
        load_data(root, data_options("blocks", 0.25, reading=Reading(None, rim=90)))


def test_a_rim_takes_nothing_from_a_slice_of_one_class(tmp_path):
    """It stays painted everywhere, and is no slice between whose paint something is unlabelled."""
    root = write_label_maps(tmp_path / "d")
    path = root / MASKS / "s_02.tif"
    tifffile.imwrite(path, np.ones((64, 64), np.uint8))
    data = load_data(root, data_options("blocks", 0.25, reading=Reading(None, rim=2)))
    (plain,) = [s for s in data.train if s.stem == "s_02"]
    assert plain.painted is None
    assert "s_02" not in [s.stem for s in data.unlabelled]


def test_padding_is_not_painted_whatever_the_map_says(tmp_path):
    root = write_label_maps(tmp_path / "d")
    for path in (root / IMAGES).iterdir():
        image = tifffile.imread(path)
        image[:, :10] = np.nan
        tifffile.imwrite(path, image)
    data = load_data(root, data_options("blocks", 0.25, reading=READING))
    for s in data.labelled:
        assert s.painted is None
        assert (s.counted == s.inside).all()
        assert not s.counted[:, :10].any()


def test_paint_outside_the_sample_alone_is_refused(tmp_path):
    root = write_label_maps(tmp_path / "d")
    image = tifffile.imread(root / IMAGES / "s_05.tif")
    image[:, :10] = np.nan
    tifffile.imwrite(root / IMAGES / "s_05.tif", image)
    labels = np.zeros((64, 64), np.uint8)
    labels[:20, :8] = 1
    tifffile.imwrite(root / MASKS / "s_05.tif", labels)
    what = r"s_05\.tif: all of its paint lies outside the sample"
    with pytest.raises(InputError, match=what):
        load_data(root, data_options("blocks", 0.25, reading=READING))
    assert any("outside the sample" in line for line in check_data(root, READING).problems)


def test_one_class_alone_teaches_nothing(tmp_path):
    root = write_label_maps(tmp_path / "d")
    for path in (root / MASKS).iterdir():
        tifffile.imwrite(path, np.ones((64, 64), np.uint8))
    with pytest.raises(InputError, match="nothing but matrix is painted in all 4 training slices"):
        load_data(root, data_options("blocks", 0.25, reading=READING))


def test_classes_that_training_or_test_lack_are_said(tmp_path):
    root = write_label_maps(tmp_path / "d")
    for i in (2, 3, 4, 5):
        path = root / MASKS / f"s_{i:02d}.tif"
        tifffile.imwrite(path, np.minimum(tifffile.imread(path), 2))
    for train, test, line in (
        ("s_02", "s_00", "pore: is painted in no training slice"),
        ("s_00", "s_02", "pore: is painted in no test slice"),
    ):
        write_split(root, train=[train], val=[], test=[test])
        notes = load_data(root, data_options(reading=READING)).notes
        assert any(line in note for note in notes)


# --- the check -------------------------------------------------------------------------------------


def test_the_check_says_how_much_of_each_slice_is_painted(tmp_path):
    root = write_label_maps(tmp_path / "d", share=0.4)
    check = check_data(root, READING)
    assert check.problems == []
    assert check.masks[0] == "classes: 1 matrix, 2 grain, 3 pore; matrix is the background"
    assert len(check.masks) == 1 + 8
    assert "s_00.tif: 40" in check.masks[1] or "s_00.tif: 39" in check.masks[1]


def test_the_check_lists_values_without_a_name_and_names_without_a_pixel(tmp_path):
    root = write_label_maps(tmp_path / "d", classes={"1": "m", "2": "g", "3": "p", "4": "crack"})
    path = root / MASKS / "s_03.tif"
    values = tifffile.imread(path)
    values[:3] = 9
    tifffile.imwrite(path, values)
    problems = check_data(root, READING).problems
    assert any("s_03.tif: holds 9, which classes.json does not name" in line for line in problems)
    assert any("names crack (4), of which no pixel is painted" in line for line in problems)
    (root / CLASSES_FILE).write_text('{"1": "m"}')
    assert any("names 1 class" in line for line in check_data(root, READING).problems)


def test_the_check_gives_the_line_that_a_folder_of_label_maps_lacks(tmp_path):
    root = write_label_maps(tmp_path / "d", share=0.4)
    (root / CLASSES_FILE).unlink()
    (line,) = [
        line for line in check_data(root, READING).problems if CLASSES_FILE + ": missing" in line
    ]
    suggested = line[line.index("{") : line.index("}") + 1]
    (root / CLASSES_FILE).write_text(suggested)
    assert check_data(root, READING).problems == []


def test_masks_that_can_be_read_are_no_label_maps(tmp_path):
    """Three grey values with soft rims are a binary mask, whatever else is wrong with the folder."""
    root = write_data(tmp_path / "d")
    for i, path in enumerate(sorted((root / MASKS).iterdir())):
        mask = disc_slice(i)[1] * np.uint8(255)
        mask[0, 0] = 128
        tifffile.imwrite(path, mask * (i > 0), photometric="minisblack")
    problems = check_data(root, Reading((8, 72, 8, 72))).problems
    assert any("mask is empty" in line for line in problems)
    assert not any(CLASSES_FILE in line for line in problems)


def test_the_check_says_which_colours_are_not_labelled(tmp_path):
    root = write_label_maps(tmp_path / "d", classes=COLOURS.record())
    for path in list((root / MASKS).iterdir()):
        colours = in_colours(tifffile.imread(path))
        colours[:8] = (255, 0, 255)
        cv2.imwrite(str(path.with_suffix(".png")), colours[..., ::-1])
        path.unlink()
    check = check_data(root, READING)
    assert check.problems == []
    assert any("not labelled: #ff00ff 12%" in line for line in check.masks)


def test_only_what_looks_like_label_maps_gets_a_suggestion():
    values, colours = label_map(), in_colours(label_map())
    assert json.loads(suggest_classes([Picture(values)])) == {
        "1": "class 1",
        "2": "class 2",
        "3": "class 3",
    }
    assert list(json.loads(suggest_classes([Picture(colours)]))) == [
        "#0000ff",
        "#00ff00",
        "#ff8000",
    ]
    for binary in (values > 1, 255 * (values > 1).astype(np.uint8)):
        assert suggest_classes([Picture(binary)]) is None
    many = np.arange(480).reshape(24, 20) % 200
    assert suggest_classes([Picture(many.astype(np.uint8))]) is None
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    assert suggest_classes([Picture(noise)]) is None
    assert suggest_classes([Picture(values.astype(np.float32) + 0.5)]) is None
