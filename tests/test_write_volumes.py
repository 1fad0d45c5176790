"""What is written has the family, axes and voxel size of the source."""

import warnings

import numpy as np
import pytest
import tifffile
import zarr
from test_volumes import FAMILIES, FLAT, GREY, IMAGEJ, UM, close, content, family, write_zarr_array

from slices.classes import classes_of
from volumes import reading
from volumes.writing import Content, write_like

__all__ = ["family"]  # a fixture

CLASSES = classes_of({"1": "matrix", "2": "grain", "4": "pore"}, "classes.json")


def write(out, volume, slices, dtype, details) -> None:
    """Write slices like a volume, without names of classes."""
    write_like(out, volume, slices, Content(np.dtype(dtype), details))


def shares() -> np.ndarray:
    """Probabilities of three classes in each slice of `GREY`: (6, 3, 20, 30) float16."""
    logits = np.random.default_rng(0).normal(size=(len(GREY), 3, *GREY.shape[1:]))
    p = np.exp(logits)
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float16)


def label_maps() -> np.ndarray:
    """Values of classes, and 0, in each pixel of `GREY`."""
    return np.array([0, 1, 2, 4], np.uint8)[np.random.default_rng(0).integers(0, 4, GREY.shape)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_what_is_written_has_the_same_family_axes_and_voxel_size(family, tmp_path, dtype):
    path, *_ = family
    volume, out = reading.open_volume(path), tmp_path / "out" / path.name
    mask = (GREY > 500).astype(dtype)
    write(out, volume, iter(mask), dtype, {"made": "by a test"})
    again = reading.open_volume(out)
    assert (again.kind, again.axes, again.shape, again.voxel) == (
        volume.kind,
        volume.axes,
        volume.shape,
        close(volume.voxel),
    )
    np.testing.assert_array_equal(content(again), mask)
    if dtype == np.uint8:
        assert again.read(0).dtype == np.uint8


def test_the_same_slices_give_the_same_bytes(family, tmp_path):
    path, *_ = family
    volume = reading.open_volume(path)
    for name in ("a", "b"):
        write(
            tmp_path / name / path.name, volume, iter((GREY > 500).astype(np.uint8)), np.uint8, {}
        )
    files = [
        {
            p.relative_to(tmp_path / name): p.read_bytes()
            for p in sorted((tmp_path / name).rglob("*"))
            if p.is_file()
        }
        for name in ("a", "b")
    ]
    assert files[0] == files[1]


def test_imagej_files_keep_calibration_and_can_be_mapped(tmp_path):
    FAMILIES["hyper.tif"][0](tmp_path / "hyper.tif")
    volume = reading.open_volume(tmp_path / "hyper.tif")
    write(tmp_path / "mask.tif", volume, iter((GREY > 500).astype(np.uint8)), np.uint8, {})
    with tifffile.TiffFile(tmp_path / "mask.tif") as file:
        stated = file.imagej_metadata
        assert file.is_imagej
        assert {
            key: stated[key] for key in ("slices", "frames", "unit", "spacing", "finterval")
        } == {"slices": 3, "frames": 2, "unit": "um", "spacing": 0.05, "finterval": 60.0}
    assert tifffile.memmap(tmp_path / "mask.tif", mode="r").shape == (2, 3, 20, 30)


@pytest.mark.parametrize("name", ["v2.ome.zarr", "v3.ome.zarr", "five.ome.zarr"])
def test_ome_zarr_metadata_agree_with_the_reference_models(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports warn
        from ome_zarr_models.v04.image import ImageAttrs as Version04
        from ome_zarr_models.v05.image import ImageAttrs as Version05
    FAMILIES[name][0](tmp_path / name)
    out = tmp_path / f"mask_{name}"
    write(
        out, reading.open_volume(tmp_path / name), iter((GREY > 500).astype(np.uint8)), np.uint8, {}
    )
    group = zarr.open_group(out, mode="r")
    details = dict(group.attrs)
    assert group.metadata.zarr_format == (3 if "ome" in details else 2)
    model = (
        Version05.model_validate(details["ome"])
        if "ome" in details
        else Version04.model_validate(details)
    )
    (image,) = model.multiscales
    (level,) = image.datasets
    assert [axis.name for axis in image.axes][-3:] == ["z", "y", "x"]
    assert level.coordinateTransformations[0].scale[-3:] == [0.05, 0.022, 0.022]
    np.testing.assert_array_equal(group[level.path][...].reshape(GREY.shape), GREY > 500)


# --- label maps and probabilities of classes -----------------------------------------------------------


def test_label_maps_hold_their_values_whatever_their_colours_are(family, tmp_path):
    path, *_ = family
    volume, out = reading.open_volume(path), tmp_path / "out" / path.name
    write_like(out, volume, iter(label_maps()), Content(np.dtype(np.uint8), {}, CLASSES))
    again = reading.open_volume(out)
    assert (again.kind, again.axes, again.shape) == (volume.kind, volume.axes, volume.shape)
    np.testing.assert_array_equal(content(again), label_maps())


def test_fiji_finds_a_look_up_table_with_the_colours_of_the_classes(tmp_path):
    expected = np.array([(0, 0, 0), *CLASSES.shown_colours], np.uint8)[[0, 1, 2, 0, 3]].T
    for name in ("imagej.tif", "pages.tif"):
        FAMILIES[name][0](tmp_path / name)
        out = tmp_path / f"mask_{name}"
        volume = reading.open_volume(tmp_path / name)
        write_like(out, volume, iter(label_maps()), Content(np.dtype(np.uint8), {}, CLASSES))
        with tifffile.TiffFile(out) as file:
            if file.is_imagej:
                table = np.reshape(file.imagej_metadata["LUTs"], (3, 256))
            else:
                table = file.pages[0].colormap // 257
        np.testing.assert_array_equal(table[:, :5], expected)
        assert not table[:, 5:].any()


def read_channels(path) -> tuple[np.ndarray, str]:
    """What a TIFF or zarr array holds, and the letters of its axes."""
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            return file.series[0].asarray(), file.series[0].axes
    node = zarr.open(path, mode="r")
    attributes = dict(node.attrs)
    if isinstance(node, zarr.Array):
        names = getattr(node.metadata, "dimension_names", "????")
        return node[...], "".join(names).upper()
    (image,) = attributes.get("ome", attributes)["multiscales"]
    return node["0"][...], "".join(axis["name"] for axis in image["axes"]).upper()


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("imagej.tif", "ZCYX"),
        ("hyper.tif", "TZCYX"),
        ("ome.ome.tif", "ZCYX"),
        ("pages.tif", "ICYX"),
        ("big.tif", "QCYX"),
        ("v2.zarr", "????"),
        ("v3.zarr", "CZYX"),
        ("v2.ome.zarr", "CZYX"),
        ("v3.ome.zarr", "CZYX"),
        ("five.ome.zarr", "TCZYX"),
    ],
)
def test_probabilities_of_classes_are_channels_where_the_format_has_them(tmp_path, name, axes):
    FAMILIES[name][0](tmp_path / name)
    volume, out = reading.open_volume(tmp_path / name), tmp_path / f"p_{name}"
    made = Content(np.dtype(np.float16), {"made": "by a test"}, CLASSES, has_channels=True)
    write_like(out, volume, iter(shares()), made)
    array, found = read_channels(out)
    assert found == axes
    expected = shares()
    if "zarr" in name:
        expected = np.moveaxis(expected, 1, 0)
    np.testing.assert_array_equal(array.reshape(expected.shape), expected)


def test_channels_have_the_names_of_the_classes(tmp_path):
    for name in ("imagej.tif", "ome.ome.tif", "v3.ome.zarr"):
        FAMILIES[name][0](tmp_path / name)
        out = tmp_path / f"p_{name}"
        volume = reading.open_volume(tmp_path / name)
        made = Content(np.dtype(np.float16), {}, CLASSES, has_channels=True)
        write_like(out, volume, iter(shares()), made)
        if name == "v3.ome.zarr":
            channels = zarr.open_group(out, mode="r").attrs["ome"]["omero"]["channels"]
            assert [channel["label"] for channel in channels] == list(CLASSES.names)
            continue
        with tifffile.TiffFile(out) as file:
            if file.is_imagej:
                assert file.imagej_metadata["Labels"][:4] == [*CLASSES.names, "matrix"]
            else:
                names = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]["Channel"]
                assert [channel["Name"] for channel in names] == list(CLASSES.names)


@pytest.mark.parametrize("has_channels", [False, True])
@pytest.mark.parametrize("name", ["v2.ome.zarr", "v3.ome.zarr", "five.ome.zarr"])
def test_ome_zarr_metadata_of_classes_agree_with_the_reference_models(tmp_path, name, has_channels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports warn
        from ome_zarr_models.v04.image import ImageAttrs as Image04
        from ome_zarr_models.v04.image_label import ImageLabelAttrs as Labels04
        from ome_zarr_models.v05.image import ImageAttrs as Image05
        from ome_zarr_models.v05.image_label import ImageLabelAttrs as Labels05
    FAMILIES[name][0](tmp_path / name)
    out = tmp_path / f"out_{name}"
    dtype = np.dtype(np.float16 if has_channels else np.uint8)
    made = Content(dtype, {}, CLASSES, has_channels)
    pixels = shares() if has_channels else label_maps()
    write_like(out, reading.open_volume(tmp_path / name), iter(pixels), made)
    details = dict(zarr.open_group(out, mode="r").attrs)
    image, labels = Image04, Labels04
    if "ome" in details:
        details, image, labels = details["ome"], Image05, Labels05
    model = image.model_validate(details)
    names = [axis.name for axis in model.multiscales[0].axes]
    (level,) = model.multiscales[0].datasets
    assert len(level.coordinateTransformations[0].scale) == len(names)
    assert level.coordinateTransformations[0].scale[-3:] == [0.05, 0.022, 0.022]
    if has_channels:
        assert names[-4:] == ["c", "z", "y", "x"]
        return
    properties = labels.model_validate(details).image_label.properties
    assert [(p.label_value, p.model_extra["class"]) for p in properties] == [
        (1, "matrix"),
        (2, "grain"),
        (4, "pore"),
    ]


def test_attributes_of_an_array_are_kept_and_say_what_made_it(tmp_path):
    write_zarr_array(tmp_path / "a.zarr", 3)
    write(
        tmp_path / "m.zarr",
        reading.open_volume(tmp_path / "a.zarr"),
        iter(GREY > 500),
        np.uint8,
        {"threshold": 0.5},
    )
    array = zarr.open(tmp_path / "m.zarr", mode="r")
    assert dict(array.attrs) == {"sample": "nickel", "freezelayers": {"threshold": 0.5}}
    assert array.chunks == (1, 20, 30)
    assert array.metadata.dimension_names == ("z", "y", "x")


def test_too_large_for_imagej_becomes_ome_with_its_voxel_size(tmp_path, monkeypatch):
    monkeypatch.setattr("volumes.writing.CLASSIC_BYTES", 1000)
    FAMILIES["imagej.tif"][0](tmp_path / "a.tif")
    tifffile.imwrite(
        tmp_path / "shape.tif",
        GREY,
        imagej=True,
        metadata={"axes": "ZYX", "spacing": 3, "unit": "pixel"},
        resolution=(1, 1),
    )
    for name in ("a.tif", "shape.tif"):
        volume = reading.open_volume(tmp_path / name)
        assert volume.kind == "imagej"
        out = tmp_path / f"mask_{name}"
        write(out, volume, iter(GREY > 500), np.uint8, {})
        with tifffile.TiffFile(out) as file:
            assert file.is_bigtiff
            assert file.is_ome
            assert file.series[0].axes == "ZYX"
        again = reading.open_volume(out)
        assert again.voxel == close(volume.voxel)
        np.testing.assert_array_equal(np.stack([again.read(i) for i in range(6)]), GREY > 500)


def test_one_slice_is_a_volume_of_one(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", GREY[0], **IMAGEJ, metadata={"unit": "um"})
    volume = reading.open_volume(tmp_path / "s.tif")
    assert (volume.kind, len(volume), volume.shape) == ("slice", 1, (20, 30))
    write(tmp_path / "m.tif", volume, [GREY[0] > 500], np.uint8, {})
    again = reading.open_volume(tmp_path / "m.tif")
    assert again.voxel == close(FLAT)
    np.testing.assert_array_equal(again.read(0), GREY[0] > 500)


def test_an_ome_slice_keeps_its_voxel_size(tmp_path):
    for name, grey, axes in (("flat", GREY[0], "YX"), ("deep", GREY[:1], "ZYX")):
        path = tmp_path / f"{name}.ome.tif"
        tifffile.imwrite(
            path, grey, ome=True, metadata={"axes": axes, **{k: UM[k] for k in UM if "Z" not in k}}
        )
        volume = reading.open_volume(path)
        assert volume.voxel == close(FLAT)
        write(tmp_path / "out" / path.name, volume, [volume.read(0) > 500], np.uint8, {})
        again = reading.open_volume(tmp_path / "out" / path.name)
        assert again.voxel == close(FLAT)
        np.testing.assert_array_equal(again.read(0), GREY[0] > 500)


def test_an_imagej_unit_that_is_not_ascii(tmp_path):
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, GREY, **IMAGEJ, metadata={"axes": "ZYX", "spacing": 0.05, "unit": "Xm"})
    path.write_bytes(path.read_bytes().replace(b"unit=Xm\n", b"unit=\xb5m\n"))
    volume = reading.open_volume(path)
    write(tmp_path / "out.tif", volume, iter(GREY > 500), np.uint8, {})
    assert len(reading.open_volume(tmp_path / "out.tif")) == 6


def test_zarr_version_2_keeps_its_separator(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=GREY.shape,
        chunks=(2, 20, 30),
        dtype="u2",
        zarr_format=2,
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    array[...] = GREY
    write(
        tmp_path / "m.zarr",
        reading.open_volume(tmp_path / "a.zarr"),
        iter(GREY > 500),
        np.uint8,
        {},
    )
    assert (tmp_path / "m.zarr" / "5" / "0" / "0").exists()
    np.testing.assert_array_equal(zarr.open(tmp_path / "m.zarr", mode="r")[...], GREY > 500)
