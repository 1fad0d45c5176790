"""Every family of volumes: read slice by slice, written again with its axes, voxel size and content."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from runtime.messages import InputError
from volumes import reading, stacks

GREY = np.random.default_rng(0).integers(0, 1000, (6, 20, 30)).astype(np.uint16)
UM = {
    "PhysicalSizeX": 0.022,
    "PhysicalSizeXUnit": "µm",
    "PhysicalSizeY": 0.022,
    "PhysicalSizeYUnit": "µm",
    "PhysicalSizeZ": 0.05,
    "PhysicalSizeZUnit": "µm",
}
VOXEL = {"X": (0.022, "um"), "Y": (0.022, "um"), "Z": (0.05, "um")}
FLAT = {"X": (0.022, "um"), "Y": (0.022, "um")}


def write_ome_zarr(path: Path, form: int, axes: str = "zyx") -> None:
    """An image of two levels, as other programs write it."""
    group = zarr.open_group(path, mode="w", zarr_format=form)
    shape = (1,) * (len(axes) - 3) + GREY.shape
    for level, step in (("s0", 1), ("s1", 2)):
        data = GREY.reshape(shape)[..., ::step, ::step]
        array = group.create_array(
            level, shape=data.shape, chunks=(*data.shape[:-3], 2, 10, 10), dtype=data.dtype
        )
        array[...] = data
    kinds = {"t": {"type": "time", "unit": "second"}, "c": {"type": "channel"}}
    image = {
        "name": "grey",
        "axes": [
            {"name": a, **kinds.get(a, {"type": "space", "unit": "micrometer"})} for a in axes
        ],
        "datasets": [
            {
                "path": f"s{i}",
                "coordinateTransformations": [
                    {
                        "type": "scale",
                        "scale": [1.0] * (len(axes) - 3) + [0.05, 0.022 * 2**i, 0.022 * 2**i],
                    }
                ],
            }
            for i in range(2)
        ],
    }
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": [image]}}
        if form == 3
        else {"multiscales": [{"version": "0.4", **image}]}
    )


def write_zarr_array(path: Path, form: int) -> None:
    array = zarr.create_array(
        path,
        shape=GREY.shape,
        chunks=(4, 20, 16),
        dtype=GREY.dtype,
        zarr_format=form,
        **({"dimension_names": ["z", "y", "x"]} if form == 3 else {}),
    )
    array[...] = GREY
    array.attrs["sample"] = "nickel"


def write_folder(path: Path) -> None:
    path.mkdir()
    for i, one in enumerate(GREY):
        tifffile.imwrite(
            path / f"s_{i + 8}.tif", one, resolution=(1e4 / 0.022,) * 2, resolutionunit=3
        )


IMAGEJ = {"imagej": True, "resolution": (1 / 0.022, 1 / 0.022)}
FAMILIES = {  # name → how it is written, kind, axes, voxel
    "imagej.tif": (
        lambda p: tifffile.imwrite(
            p, GREY, **IMAGEJ, metadata={"axes": "ZYX", "spacing": 0.05, "unit": "um"}
        ),
        "imagej",
        "ZYX",
        VOXEL,
    ),
    "micron.tif": (
        lambda p: tifffile.imwrite(
            p, GREY, **IMAGEJ, metadata={"axes": "ZYX", "spacing": 0.05, "unit": "\\u00B5m"}
        ),
        "imagej",
        "ZYX",
        VOXEL,
    ),
    "hyper.tif": (
        lambda p: tifffile.imwrite(
            p,
            GREY.reshape(2, 3, 20, 30),
            **IMAGEJ,
            metadata={"axes": "TZYX", "spacing": 0.05, "unit": "um", "finterval": 60.0},
        ),
        "imagej",
        "TZYX",
        VOXEL,
    ),
    "ome.ome.tif": (
        lambda p: tifffile.imwrite(
            p, GREY, ome=True, compression="zlib", metadata={"axes": "ZYX", **UM}
        ),
        "ome",
        "ZYX",
        VOXEL,
    ),
    "pages.tif": (
        lambda p: tifffile.imwrite(
            p,
            GREY,
            photometric="minisblack",
            metadata=None,
            resolution=(1e4 / 0.022,) * 2,
            resolutionunit=3,
        ),
        "tiff",
        "IYX",
        FLAT,
    ),
    "big.tif": (
        lambda p: tifffile.imwrite(
            p,
            GREY,
            photometric="minisblack",
            bigtiff=True,
            tile=(16, 16),
            compression="lzw",
            byteorder=">",
        ),
        "tiff",
        "QYX",
        {},
    ),
    "folder": (write_folder, "folder", "ZYX", FLAT),
    "v2.zarr": (lambda p: write_zarr_array(p, 2), "zarr", "QYX", {}),
    "v3.zarr": (lambda p: write_zarr_array(p, 3), "zarr", "ZYX", {}),
    "v2.ome.zarr": (lambda p: write_ome_zarr(p, 2), "zarr", "ZYX", VOXEL),
    "v3.ome.zarr": (lambda p: write_ome_zarr(p, 3), "zarr", "ZYX", VOXEL),
    "five.ome.zarr": (lambda p: write_ome_zarr(p, 3, "tczyx"), "zarr", "ZYX", VOXEL),
}


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path) -> tuple[Path, str, str, dict]:
    write, *details = FAMILIES[request.param]
    write(tmp_path / request.param)
    return tmp_path / request.param, *details


def close(voxel: dict) -> dict:
    return {axis: (pytest.approx(size), unit) for axis, (size, unit) in voxel.items()}


def content(volume: reading.Volume) -> np.ndarray:
    return np.stack([volume.read(i) for i in range(len(volume))])


def test_slices_axes_and_voxel_size_are_read(family):
    path, kind, axes, voxel = family
    volume = reading.open_volume(path)
    assert (volume.kind, volume.axes, len(volume)) == (kind, axes, 6)
    np.testing.assert_array_equal(content(volume), GREY)
    assert volume.voxel == close(voxel)
    assert all(str(path) in name for name in volume.names)


def strange(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    if name == "colour.tif":
        tifffile.imwrite(path, np.zeros((4, 20, 30, 3), np.uint8), photometric="rgb")
    elif name == "channels.tif":
        tifffile.imwrite(
            path, np.zeros((4, 2, 20, 30), np.uint8), imagej=True, metadata={"axes": "ZCYX"}
        )
    elif name == "several.tif":
        with tifffile.TiffWriter(path) as file:
            file.write(np.zeros((20, 30), np.uint8))
            file.write(np.zeros((10, 30), np.uint16))
    elif name == "cut.tif":
        tifffile.imwrite(path, GREY, photometric="minisblack")
        path.write_bytes(path.read_bytes()[:200])
    elif name == "group.zarr":
        zarr.open_group(path, mode="w").create_array("grey", shape=(3, 4, 4), dtype="u1")
    elif name == "axes.ome.zarr":
        write_ome_zarr(path, 3)
        details = json.loads((path / "zarr.json").read_text())
        details["attributes"]["ome"]["multiscales"][0]["axes"].pop()
        (path / "zarr.json").write_text(json.dumps(details))
    elif name == "transposed.ome.zarr":
        write_ome_zarr(path, 3, "xyz")
    elif name == "broken.zarr":
        path.mkdir()
        (path / "zarr.json").write_text("{")
    elif name == "empty":
        path.mkdir()
    elif name == "a.jpg":
        path.touch()
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("colour.tif", "save one grey channel"),
        ("channels.tif", "save one grey channel"),
        ("several.tif", "2 images of different kinds"),
        ("cut.tif", "cut.tif: cannot be read"),
        ("group.zarr", r"name one of its arrays \(grey\)"),
        ("axes.ome.zarr", "names 2 axes, the array has 3"),
        ("transposed.ome.zarr", "rows and columns last"),
        ("broken.zarr", "cannot be read as zarr"),
        ("empty", "holds no slice"),
        ("a.jpg", "is not a .tif"),
        ("none", "no such file"),
    ],
)
def test_what_is_no_grey_volume_is_refused_by_name(tmp_path, name, message):
    with pytest.raises(InputError, match=message) as error:
        reading.open_volume(strange(tmp_path, name))
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def damage(path: Path) -> None:
    """Spoil some of the compressed bytes of a zarr array or TIFF."""
    if path.is_dir():
        chunk = next(
            p
            for p in sorted(path.rglob("*"))
            if p.is_file() and not p.name.startswith(".z") and "json" not in p.name
        )
        chunk.write_bytes(b"no chunk")
        return
    with tifffile.TiffFile(path) as file:
        place, count = file.pages[2].dataoffsets[0], file.pages[2].databytecounts[0]
    stored = bytearray(path.read_bytes())
    stored[place : place + count] = bytes(count)
    path.write_bytes(stored)


@pytest.mark.parametrize("name", ["ome.ome.tif", "big.tif", "v2.zarr", "v3.ome.zarr"])
def test_a_damaged_slice_is_named_and_the_others_are_read(tmp_path, name):
    path = tmp_path / name
    FAMILIES[name][0](path)
    damage(path)
    volume, failures = reading.open_volume(path), {}
    for i in range(6):
        try:
            np.testing.assert_array_equal(volume.read(i), GREY[i])
        except InputError as error:
            failures[i] = str(error)
    assert 0 < len(failures) < 6
    for i, message in failures.items():
        assert message.startswith(f"{path}, slice {i}: cannot be read")
        assert "\n" not in message


def test_a_stack_whose_end_is_missing(tmp_path):
    FAMILIES["imagej.tif"][0](tmp_path / "imagej.tif")
    (tmp_path / "imagej.tif").write_bytes((tmp_path / "imagej.tif").read_bytes()[:-700])
    with pytest.raises(InputError, match=r"imagej\.tif"):
        content(reading.open_volume(tmp_path / "imagej.tif"))


@pytest.mark.parametrize("name", ["deep.zarr", "hyper.zarr"])
def test_slices_of_one_chunk_are_decoded_once(tmp_path, name, monkeypatch):
    grey = np.arange(2 * 8 * 6 * 5, dtype=np.uint16).reshape(2, 8, 6, 5)
    grey = grey if name == "hyper.zarr" else grey[0]
    array = zarr.create_array(
        tmp_path / name,
        shape=grey.shape,
        chunks=(*(1 for _ in grey.shape[:-3]), 3, 6, 5),
        dtype="u2",
        dimension_names=list("tzyx")[-grey.ndim :],
    )
    array[...] = grey
    read, reads = zarr.Array.__getitem__, []
    monkeypatch.setattr(
        zarr.Array, "__getitem__", lambda self, index: reads.append(index) or read(self, index)
    )
    volume = reading.open_volume(tmp_path / name)
    np.testing.assert_array_equal(content(volume), grey.reshape(-1, 6, 5))
    assert len(reads) == 3 * len(grey.reshape(-1, 8, 6, 5))
    assert volume.read(len(volume) - 1)[0, 0] == grey.reshape(-1, 6, 5)[-1, 0, 0]
    monkeypatch.setattr(stacks, "SLAB_BYTES", 100)  # too large to be kept
    np.testing.assert_array_equal(
        content(reading.open_volume(tmp_path / name)), grey.reshape(-1, 6, 5)
    )


def test_an_ome_tiff_whose_companion_is_missing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(2):
            tifffile.imwrite(
                tmp_path / f"m_{i}.ome.tif",
                GREY[3 * i : 3 * i + 3],
                ome=True,
                metadata={"axes": "ZYX"},
            )
    with tifffile.TiffFile(tmp_path / "m_0.ome.tif") as file:
        details = file.ome_metadata
    second = (
        '<TiffData IFD="0" FirstZ="3" PlaneCount="3"><UUID FileName="m_1.ome.tif">urn:uuid:1</UUID></TiffData>'
        "</Pixels>"
    )
    both = details.replace('SizeZ="3"', 'SizeZ="6"').replace("</Pixels>", second)
    tifffile.imwrite(
        tmp_path / "m_0.ome.tif",
        GREY[:3],
        description=both,
        metadata=None,
        photometric="minisblack",
    )
    (tmp_path / "m_1.ome.tif").unlink()
    with pytest.raises(InputError, match=r"m_0.ome.tif: cannot be read"):
        reading.open_volume(tmp_path / "m_0.ome.tif")


@pytest.mark.parametrize("axes", [["z", "y", "x"], None])
def test_old_ome_zarr_metadata(tmp_path, axes):
    write_ome_zarr(tmp_path / "old.ome.zarr", 2)
    group = zarr.open_group(tmp_path / "old.ome.zarr", mode="a")
    image = {"version": "0.2", "datasets": [{"path": "s0"}], **({"axes": axes} if axes else {})}
    group.attrs.put({"multiscales": [image]})
    volume = reading.open_volume(tmp_path / "old.ome.zarr")
    assert (volume.axes, volume.voxel) == ("ZYX", {})
    np.testing.assert_array_equal(content(volume), GREY)
    group.attrs.put(
        {
            "multiscales": [
                {
                    **image,
                    "axes": [{"name": a} for a in "zyx"],
                    "coordinateTransformations": [{"type": "scale", "path": "x"}],
                }
            ]
        }
    )
    volume = reading.open_volume(
        tmp_path / "old.ome.zarr"
    )  # a size in a file of its own is not read, and said
    assert volume.voxel == {}
    assert "in a way that is not read" in volume.details["remarks"][0]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["s_1", "s_2", "s_3"], None),
        (["z_-1", "z_0", "z_1"], None),
        (["s1_z1", "s1_z2"], None),
        (["a"], None),
        (
            ["s_9", "s_10", "s_15", "s_16"],
            "numbers of slices jump from 10 to 15; they are taken for neighbours",
        ),
        (["s_10", "s_20", "s_30"], "has every 10. slice"),
        (["a_1", "a_2", "b_1"], "names of its files have several forms"),
        (["z0.1", "z0.15", "z0.2"], "takes numbers in names for whole ones"),
    ],
)
def test_what_makes_slices_no_neighbours_is_said(tmp_path, names, said):
    for name in names:
        tifffile.imwrite(tmp_path / f"{name}.tif", GREY[0])
    result = reading.open_volume(tmp_path).details["order"]
    assert len(result) == bool(said)
    assert said is None or said in result[0]
