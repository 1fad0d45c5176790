"""Voxel sizes: every spelling of a unit, and nothing that cannot be."""

import math

import numpy as np
import pytest
import tifffile

from particles.voxels import voxel_of
from runtime.messages import InputError
from volumes import voxel_size
from volumes.reading import open_volume
from volumes.voxel_size import is_default_resolution, plain_unit, read_voxel, sides_in_um
from volumes.writing import Content, write_like

SPELLED = {
    "um": [
        "um",
        "µm",
        "\N{GREEK SMALL LETTER MU}m",
        "micron",
        "microns",
        "Micron",
        "micrometer",
        "micrometers",
        "micrometre",
        "Micrometres",
        "\\u00B5m",
        "um ",
        "UM",
        "Âµm",
        "Î¼m",
    ],
    "nm": ["nm", "nanometer", "Nanometers", "nanometre", " nm"],
    "mm": ["mm", "millimeter", "millimetres"],
    "cm": ["cm", "centimeter"],
    "m": ["m", "meter", "metre"],
    "inch": ["inch", "inches", "in", '"'],
    "angstrom": ["Å", "A\u030a", "A", "angstrom", "Angstroms", "\N{ANGSTROM SIGN}"],
    "px": ["pixel", "pixels", "px", "reference frame"],
}


@pytest.mark.parametrize(
    ("unit", "text"), [(unit, text) for unit, texts in SPELLED.items() for text in texts]
)
def test_every_spelling_of_a_unit(unit, text):
    assert plain_unit(text) == unit


def test_sizes_in_several_units_become_micrometres():
    voxel, remarks = read_voxel({"X": (500, "nm"), "Y": (0.5, "µm"), "Z": (0.0015, "mm")}, "v")
    assert remarks == []
    assert {axis: size for axis, (size, _) in voxel.items()} == pytest.approx(
        {"X": 0.5, "Y": 0.5, "Z": 1.5}
    )
    assert {unit for _, unit in voxel.values()} == {"um"}


@pytest.mark.parametrize("value", [0, -1.5, math.nan, math.inf, "1,5", "", None])
def test_what_cannot_be_is_left_out_and_said(value):
    voxel, remarks = read_voxel({"X": (0.5, "um"), "Z": (value, "um")}, "v")
    assert voxel == {"X": (0.5, "um")}
    assert len(remarks) == 1
    assert "v: says that voxels are" in remarks[0]


def test_the_shape_of_a_voxel_is_known_without_its_size():
    assert read_voxel({"X": (2, ""), "Y": (2, "pixel"), "Z": (6, "")}, "v") == (
        {"X": (1.0, "px"), "Y": (1.0, "px"), "Z": (3.0, "px")},
        [],
    )
    voxel, remarks = read_voxel({"X": (2, "furlong"), "Z": (6, "furlong")}, "v")
    assert voxel == {"X": (1.0, "px"), "Z": (3.0, "px")}
    assert "no known unit of length" in remarks[0]
    assert read_voxel({"X": (2, "furlong"), "Z": (6, "um")}, "v")[0] == {}


def test_a_voxel_much_longer_than_wide_is_questioned():
    voxel, remarks = read_voxel({"X": (500, "um"), "Z": (1.5, "um")}, "v")
    assert voxel["X"] == (500, "um")
    assert "are the units right?" in remarks[0]


@pytest.mark.parametrize(
    ("per_unit", "unit", "is_default"),
    [
        (72, "inch", True),
        (28.346, "cm", True),
        (300, "inch", True),
        (118.11, "cm", True),
        (1, "cm", True),
        (96, "inch", True),
        (20000, "cm", False),
        (50800, "inch", False),
        (454545, "cm", False),
    ],
)
def test_resolutions_of_paper_and_screens_are_not_believed(per_unit, unit, is_default):
    assert is_default_resolution(per_unit, unit) == is_default


# --- files ----------------------------------------------------------------------------------------------------

STACK = np.zeros((4, 8, 8), np.uint8)


def imagej(path, unit, per_unit, spacing=None, **more):
    details = {
        "axes": "ZYX",
        "unit": unit,
        **({} if spacing is None else {"spacing": spacing}),
        **more,
    }
    tifffile.imwrite(path, STACK, imagej=True, resolution=(per_unit, per_unit), metadata=details)


def ome(path, **sizes):
    tifffile.imwrite(path, STACK, photometric="minisblack", metadata={"axes": "ZYX", **sizes})


FILES = {
    "zunit.tif": (
        lambda p: imagej(p, "nm", 0.002, 1.5, yunit="nm", zunit="um"),
        (1.5, 0.5, 0.5),
        "µm",
        0,
    ),
    "znano.tif": (lambda p: imagej(p, "um", 2, 1500, zunit="nm"), (1.5, 0.5, 0.5), "µm", 0),
    "inch.tif": (lambda p: imagej(p, "inch", 50800, 1.5 / 25400), (1.5, 0.5, 0.5), "µm", 0),
    "pixel.tif": (lambda p: imagej(p, "pixel", 1, 3), (3, 1, 1), "px", 0),
    "screen.tif": (lambda p: imagej(p, "inch", 72, 3), (1, 1, 1), "px", 1),
    "flat.tif": (lambda p: imagej(p, "um", 2), (0.5, 0.5, 0.5), "µm", 0),
    "zero.tif": (lambda p: imagej(p, "um", 2, 0.0), (0.5, 0.5, 0.5), "µm", 1),
    "nano.ome.tif": (
        lambda p: ome(
            p,
            PhysicalSizeX=500,
            PhysicalSizeY=500,
            PhysicalSizeZ=1500,
            PhysicalSizeXUnit="nm",
            PhysicalSizeYUnit="nm",
            PhysicalSizeZUnit="nm",
        ),
        (1.5, 0.5, 0.5),
        "µm",
        0,
    ),
    "no_x.ome.tif": (
        lambda p: ome(p, PhysicalSizeX=0, PhysicalSizeY=0, PhysicalSizeZ=1.5),
        (1, 1, 1),
        "px",
        2,
    ),
    "no_z.ome.tif": (
        lambda p: ome(p, PhysicalSizeX=0.5, PhysicalSizeY=0.5, PhysicalSizeZ=-1.5),
        (0.5, 0.5, 0.5),
        "µm",
        1,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_what_files_say(tmp_path, name):
    write, spacing, unit, remarks = FILES[name]
    write(tmp_path / name)
    volume = open_volume(tmp_path / name)
    assert voxel_of(volume, None, None) == (pytest.approx(spacing), unit)
    assert len(volume.details["remarks"]) == remarks


@pytest.mark.parametrize(
    ("unit", "per_unit", "expected"),
    [
        ("CENTIMETER", 20000, 0.5),
        ("INCH", 50800, 0.5),
        ("CENTIMETER", 28.346, None),
        ("INCH", 300, None),
        ("NONE", 3, None),
    ],
)
def test_resolution_of_a_plain_file(tmp_path, unit, per_unit, expected):
    tifffile.imwrite(
        tmp_path / "a.tif",
        STACK,
        resolution=(per_unit, per_unit),
        resolutionunit=unit,
        photometric="minisblack",
    )
    spacing, result = voxel_of(open_volume(tmp_path / "a.tif"), None, None)
    assert (spacing[2], result) == (
        pytest.approx(expected or 1.0),
        "px" if expected is None else "µm",
    )


def test_what_is_given_goes_before_what_a_file_says(tmp_path):
    imagej(tmp_path / "a.tif", "um", 2, 1.5)
    imagej(tmp_path / "shape.tif", "pixel", 1, 3)
    assert voxel_of(open_volume(tmp_path / "a.tif"), 0.1, None) == (
        pytest.approx((1.5, 0.1, 0.1)),
        "µm",
    )
    assert voxel_of(open_volume(tmp_path / "a.tif"), 0.1, 0.2)[0] == (0.2, 0.1, 0.1)
    assert voxel_of(open_volume(tmp_path / "a.tif"), None, 0.2)[0] == (0.2, 0.5, 0.5)
    assert voxel_of(open_volume(tmp_path / "shape.tif"), 0.1, None) == (
        pytest.approx((0.3, 0.1, 0.1)),
        "µm",
    )
    with pytest.raises(InputError, match="--slice-distance needs --pixel-size"):
        voxel_of(open_volume(tmp_path / "shape.tif"), None, 2.0)


def test_units_that_are_known_are_those_with_a_length():
    assert set(voxel_size.UNITS.values()) == set(voxel_size.IN_UM)


def test_imagej_leaves_out_a_spacing_of_one_unit(tmp_path):
    """And tifffile one that nobody gave; ImageJ without a unit counts in pixels."""
    texts = {
        "fiji": "ImageJ=1.54f\nimages=4\nslices=4\nunit=micron\n",
        "pixels": "ImageJ=1.54f\nimages=4\nslices=4\nspacing=3.0\n",
    }
    for name, text in texts.items():
        tifffile.imwrite(
            tmp_path / f"{name}.tif",
            STACK,
            resolution=(2, 2),
            metadata=None,
            description=text.encode(),
            photometric="minisblack",
        )
    assert voxel_of(open_volume(tmp_path / "fiji.tif"), None, None) == ((1.0, 0.5, 0.5), "µm")
    assert voxel_of(open_volume(tmp_path / "pixels.tif"), None, None) == ((3.0, 1.0, 1.0), "px")


def test_a_single_slice_of_imagej_says_no_distance(tmp_path):
    for i in range(5):
        tifffile.imwrite(
            tmp_path / f"s_{i}.tif",
            STACK[0],
            resolution=(1 / 0.022, 1 / 0.022),
            metadata=None,
            description="ImageJ=1.53t\nunit=um\n",
            photometric="minisblack",
        )
    volume = open_volume(tmp_path)
    assert sides_in_um(volume.voxel) == pytest.approx({"X": 0.022, "Y": 0.022})
    assert voxel_of(volume, None, None)[0] == pytest.approx((0.022,) * 3)


def test_a_mask_keeps_the_distance_that_imagej_left_out(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        STACK,
        resolution=(2, 2),
        metadata=None,
        photometric="minisblack",
        description="ImageJ=1.54f\nimages=4\nslices=4\nunit=um\n",
    )
    volume = open_volume(tmp_path / "a.tif")
    write_like(tmp_path / "m.tif", volume, iter(STACK), Content(np.dtype(np.uint8), {}))
    for read in (volume, open_volume(tmp_path / "m.tif")):
        assert voxel_of(read, None, None) == ((1, 0.5, 0.5), "µm")


@pytest.mark.parametrize(
    ("per_unit", "unit"), [(10, "CENTIMETER"), (25.4, "INCH"), (2, "INCH"), (38, "CENTIMETER")]
)
def test_pixels_of_a_tenth_of_a_millimetre_are_not_believed(tmp_path, per_unit, unit):
    tifffile.imwrite(
        tmp_path / "a.tif",
        STACK,
        resolution=(per_unit, per_unit),
        resolutionunit=unit,
        photometric="minisblack",
    )
    volume = open_volume(tmp_path / "a.tif")
    assert voxel_of(volume, None, None)[1] == "px"
    assert "left out, so sizes are in pixels" in volume.details["remarks"][0]


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        ({"type": "scale", "scale": [0.5, 0.5]}, "in a way that is not read"),
        (
            {"type": "affine", "affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]},
            "in a way that is not read",
        ),
        ({"type": "scale", "path": "scale.json"}, "in a way that is not read"),
        ({"type": "scale", "scale": ["a", 1, 1]}, "no number"),
    ],
)
def test_transforms_of_zarr_images_that_are_not_read(tmp_path, transform, said):
    import zarr

    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=STACK)
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": axes,
            "datasets": [{"path": "0", "coordinateTransformations": [transform]}],
        }
    ]
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.voxel == {}
    assert said in volume.details["remarks"][0]


def test_a_distance_that_a_new_pixel_size_leaves_is_said(tmp_path, capsys):
    imagej(tmp_path / "a.tif", "um", 2, 1.5)
    voxel_of(open_volume(tmp_path / "a.tif"), 0.1, None)
    assert "the distance of slices stays as the file says, 1.5 µm" in capsys.readouterr().err


def test_a_folder_whose_files_state_different_sizes_has_none(tmp_path):
    for i in range(30):
        per_cm = 20000 if i < 29 else 10000  # the last one was saved by another program
        tifffile.imwrite(
            tmp_path / f"s_{i}.tif",
            STACK[0],
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
        )
    volume = open_volume(tmp_path)
    assert volume.voxel == {}
    assert volume.details["remarks"] == [
        f"{tmp_path}: s_0.tif says that a voxel is X 0.5 um, Y 0.5 um, s_29.tif says "
        "X 1 um, Y 1 um; sizes are in pixels (give --pixel-size)"
    ]
    (tmp_path / "s_29.tif").unlink()
    assert sides_in_um(open_volume(tmp_path).voxel) == pytest.approx({"X": 0.5, "Y": 0.5})
    tifffile.imwrite(
        tmp_path / "s_28.tif", STACK[0], imagej=True, resolution=(2, 2), metadata={"unit": "pixel"}
    )
    assert "says X 1 px, Y 1 px" in open_volume(tmp_path).details["remarks"][0]
    (tmp_path / "s_28.tif").write_bytes(b"no TIFF")  # an error where it is read, not here
    assert open_volume(tmp_path).voxel


def test_the_size_is_that_of_the_page_that_is_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "t.tif") as file:
        file.write(
            STACK[0, ::4, ::4], subfiletype=1, resolution=(5000, 5000), resolutionunit="CENTIMETER"
        )
        file.write(STACK[0], resolution=(20000, 20000), resolutionunit="CENTIMETER")
    assert sides_in_um(open_volume(tmp_path / "t.tif").voxel) == pytest.approx({"X": 0.5, "Y": 0.5})


def test_the_shape_of_a_pixel_is_read_without_a_unit(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], resolution=(1, 3), resolutionunit="NONE")
    assert open_volume(tmp_path / "a.tif").voxel == {
        "X": (pytest.approx(3.0), "px"),
        "Y": (1.0, "px"),
    }


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (
            {"X": (0.5, "m"), "Y": (0.5, "m")},
            "voxels are 500000 µm along X, Y; taken so, but is the unit right?",
        ),
        ({"X": (2.3e-6, "um"), "Y": (2.3e-6, "um")}, "voxels are 2.3e-06 µm along X, Y"),
        (
            {"X": (0.5, "um"), "Y": (0.5, "um"), "Z": (3, "")},
            "a size without a unit of length along Z; left out",
        ),
        (
            {"X": (2, "pixel"), "Y": (2, "pixel"), "Z": (0.5, "um")},
            "a size without a unit of length along X, Y",
        ),
    ],
)
def test_sizes_that_can_hardly_be_are_said(stated, said):
    _, remarks = read_voxel(stated, "a.tif")
    assert any(said in line for line in remarks), remarks
