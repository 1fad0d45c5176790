"""Files as instruments, programs and strangers write them: what is wrong with each, and what is said about it.

A case is a function that writes it to a path; `IMAGES` and `MASKS` say what follows.
"""

import json
import os
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import tifffile

from conftest import disc_slice

GREY, TRUTH = disc_slice(50)
EIGHT = ((GREY - GREY.min()) / np.ptp(GREY) * 255).astype(np.uint8)
BYTES = 4 * 2**30  # what a bomb claims to hold


def tiff(array: np.ndarray = GREY, **options: object):
    """A writer of a TIFF file."""
    options.setdefault("photometric", "minisblack")
    return lambda path: tifffile.imwrite(path, array, **options)


def damaged(change, write=None):
    """A writer of a TIFF file, or what `write` does, whose bytes are changed afterwards."""

    def damage(path: Path) -> None:
        (write or tiff())(path)
        path.write_bytes(change(bytearray(path.read_bytes())))

    return damage


def flipped(content: bytearray, *places: int) -> bytearray:
    for place in places:
        content[place] ^= 0xFF
    return content


def raw_tiff(
    path: Path, width: int, height: int, compression: int = 1, description: bytes = b""
) -> None:
    """A TIFF file of a few bytes that claims any size."""
    data = zlib.compress(bytes(1000))
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (270, 2, len(description), 8 + len(data)),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, len(data) if compression > 1 else min(width * height, 2**32 - 1)),
    ]
    tags = [tag for tag in tags if tag[2]]
    start = 8 + len(data) + len(description)
    start += start % 2
    content = b"II*\0" + struct.pack("<I", start) + data + description
    content += b"\0" * (start - len(content)) + struct.pack("<H", len(tags))
    path.write_bytes(content + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4)


def raw_png(path: Path, width: int, height: int) -> None:
    """A PNG file of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def raw_npy(path: Path, shape: tuple[int, ...], content: bytes = b"abc") -> None:
    """An npy file that claims any shape."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        file.write(content)


def png(array: np.ndarray):
    """A writer of a PNG file."""
    return lambda path: path.write_bytes(cv2.imencode(".png", array)[1].tobytes())


def npy(array: np.ndarray, allow_pickle: bool = False):
    """A writer of an npy file, whatever its suffix."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=allow_pickle)

    return write


class Attack:
    """Unpickling this makes a folder in the current one."""

    def __reduce__(self):
        return os.mkdir, ("attacked",)


def with_nan(value: float) -> np.ndarray:
    array = GREY.copy()
    array[3, 4] = value
    return array


LONG = np.random.default_rng(0).integers(1, 255, (100_000, 2)).astype(np.uint8)
IMAGES = {  # case: (writer, what training says, what predict.py says); None: it is read, and right
    "empty file": (lambda p: p.write_bytes(b""), "cannot be read", "cannot be read"),
    "text": (lambda p: p.write_text("no image"), "cannot be read", "cannot be read"),
    "a PNG called .tif": (png(EIGHT), "cannot be read", "cannot be read"),
    "an npy called .tif": (npy(GREY), "cannot be read", "cannot be read"),
    "a pickle called .tif": (
        lambda p: p.write_bytes(pickle.dumps(Attack())),
        "cannot be read",
        "cannot be read",
    ),
    "a folder called .tif": (lambda p: p.mkdir(), "no mask|no image|no slice", "no slice"),
    "a pipe called .tif": (os.mkfifo, "is no file that can be read", "is no file that can be read"),
    "a link to itself": (
        lambda p: p.symlink_to(p),
        "cannot be opened|no such file",
        "no such file|cannot be opened",
    ),
    "a link to nothing": (lambda p: p.symlink_to("nothing.tif"), "no such file", "no such file"),
    "cut off in the pixels": (
        damaged(lambda b: b[: len(b) // 2]),
        "cannot be read",
        "cannot be read",
    ),
    "cut off in the tags": (damaged(lambda b: b[:40]), "cannot be read", "cannot be read"),
    "tags flipped": (damaged(lambda b: flipped(b, 10, 11)), "cannot be read", "cannot be read"),
    "size flipped": (
        damaged(lambda b: flipped(b, 20)),
        "cannot be read|has shape",
        "cannot be read|has shape",
    ),
    "compressed pixels flipped": (
        damaged(lambda b: flipped(b, *range(-900, -800)), tiff(compression="zlib")),
        "cannot be read",
        "cannot be read",
    ),
    "compressed and cut off": (
        damaged(lambda b: b[:-1500], tiff(compression="zlib")),
        "cannot be read",
        "cannot be read",
    ),
    "claims 4 GB": (
        lambda p: raw_tiff(p, 2**16, 2**16),
        r"claims to hold .* GB, in a file of",
        "claims to hold",
    ),
    "claims 4 GB, deflated": (
        lambda p: raw_tiff(p, 2**16, 2**16, 8),
        r"claims to hold .* GB",
        "claims to hold",
    ),
    "claims 0.9 GB, deflated": (
        lambda p: raw_tiff(p, 30_000, 30_000, 8),
        r"claims to hold .* GB",
        "claims to hold",
    ),
    "claims many slices": (
        lambda p: raw_tiff(p, 64, 64, 1, b"ImageJ=1.53\nimages=400000000\nslices=400000000\n\0"),
        "cannot be read|claims",
        "cannot be read|claims",
    ),
    "no pixels": (
        lambda p: raw_tiff(p, 0, 64),
        "cannot be read|has shape",
        "cannot be read|has axes|has shape",
    ),
    "RGB": (tiff(np.dstack([EIGHT] * 3), photometric="rgb"), None, None),
    "RGB of several colours": (
        tiff(np.dstack([EIGHT, EIGHT.T, EIGHT]), photometric="rgb"),
        "is coloured",
        "is coloured",
    ),
    "RGBA": (
        tiff(np.dstack([EIGHT] * 4), photometric="rgb", extrasamples=["unassalpha"]),
        "transparent parts",
        "transparent parts",
    ),
    "two channels": (
        tiff(np.stack([GREY, GREY]), planarconfig="separate", metadata={"axes": "CYX"}),
        "one grey slice",
        "one grey channel|one grey slice",
    ),
    "several pages": (tiff(np.stack([GREY] * 3)), "one grey slice", None),
    "a preview beside": (
        lambda p: [tifffile.imwrite(p, EIGHT), tifffile.imwrite(p, EIGHT[::4, ::4], append=True)],
        "2 images in one file|cannot be read",
        "different kinds|2 images",
    ),
    "one pixel": (tiff(np.float32([[3]])), "is constant", None),
    "NaN everywhere": (
        tiff(np.full_like(GREY, np.nan)),
        "lies outside the sample altogether",
        None,
    ),
    "one NaN": (
        tiff(with_nan(np.nan)),
        "1 of 4096 pixels are NaN or infinite, inside",
        "NaN or infinite",
    ),
    "one infinity": (
        tiff(with_nan(-np.inf)),
        "1 of 4096 pixels are NaN or infinite; replace",
        "NaN or infinite",
    ),
    "complex": (
        tiff(GREY.astype(np.complex64)),
        "holds complex64 values",
        "holds complex64 values",
    ),
    "too far apart": (
        tiff(np.where(TRUTH == 1, 1.5e308, -1.5e308)),
        "too far to be scaled",
        "too far to be scaled",
    ),
    "constant": (tiff(np.full_like(EIGHT, 7)), "is constant", None),
    "black": (tiff(np.zeros_like(EIGHT)), "is constant", None),
    "long and narrow": (tiff(LONG), None, None),
    "negative": (tiff(GREY - 1), None, None),
    "big-endian": (tiff(byteorder=">"), None, None),
    "64-bit floats": (tiff(GREY.astype(np.float64)), None, None),
    "16-bit floats": (tiff((GREY * 1e4).astype(np.float16)), None, None),
    "64-bit integers": (tiff((GREY * 1e15).astype(np.int64)), None, None),
    "signed": (tiff(EIGHT.astype(np.int16) - 128), None, None),
    "palette": (
        tiff(
            EIGHT, photometric="palette", colormap=np.arange(768, dtype=np.uint16).reshape(3, 256)
        ),
        None,
        None,
    ),
    "inverting table": (tiff(EIGHT, photometric="miniswhite"), None, None),
    "1-bit": (tiff(EIGHT > 99), "is constant", None),
    "LZW": (tiff(compression="lzw"), None, None),
    "deflate with predictor": (tiff(EIGHT, compression="zlib", predictor=True), None, None),
    "JPEG": (tiff(EIGHT, compression="jpeg"), None, None),
    "zstd": (tiff(compression="zstd"), None, None),
    "tiled": (tiff(tile=(32, 32)), None, None),
    "BigTIFF": (tiff(bigtiff=True), None, None),
    "a pyramid": (lambda p: pyramid(p), None, None),
}


def pyramid(path: Path) -> None:
    """A slice and its reduced copy, as viewers of large images like them."""
    with tifffile.TiffWriter(path) as file:
        file.write(EIGHT, subifds=1, photometric="minisblack")
        file.write(EIGHT[::2, ::2], subfiletype=1, photometric="minisblack")


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=TRUTH)


INVERTED, THREE = np.where(TRUTH == 1, 0, 255).astype(np.uint8), TRUTH * 255
THREE[:9] = 128
SHARES = GREY.astype(np.float64) / GREY.max()
MASKS = {  # case: (suffix, writer, what training says, what datasets.py check says); None: it is read, and right
    "of another size": (
        ".png",
        png(TRUTH[:50] * 255),
        "is 50×64 px, its image",
        "is 50×64 px, its image",
    ),
    "soft": (
        ".tif",
        tiff(np.float32(cv2.GaussianBlur(TRUTH * 1.0, (9, 9), 0))),
        "holds .* values",
        "holds .* values",
    ),
    "three values": (
        ".png",
        png(THREE),
        r"holds 3 values \(0, 128, 255\)",
        r"holds 3 values \(0, 128, 255\)",
    ),
    "labels": (
        ".tif",
        tiff(np.cumsum(TRUTH.ravel()).reshape(TRUTH.shape).astype(np.int32) // 99 * TRUTH),
        "holds .* values .*--(mask|pred)-foreground labels",
        "holds .* values .*--mask-foreground labels",
    ),
    "inverted": (
        ".png",
        png(INVERTED),
        "s_00.tif: its mask has the dark side where others",
        r"% of the slice is foreground, of most others less than half; right if",
    ),
    "empty": (".png", png(TRUTH * 0), None, "mask is empty; right if the slice really is so"),
    "full": (".png", png(TRUTH * 0 + 255), None, "mask is full; right if the slice really is so"),
    "another constant": (".png", png(TRUTH * 0 + 7), "every pixel is 7", "every pixel is 7"),
    "NaN": (
        ".npy",
        npy(np.full(TRUTH.shape, np.nan)),
        "holds NaN, infinite",
        "holds NaN, infinite",
    ),
    "text values": (
        ".npy",
        npy(np.full(TRUTH.shape, "x")),
        "other than real values",
        "other than real values",
    ),
    "records": (
        ".npy",
        npy(np.zeros(TRUTH.shape, [("a", "f4")])),
        "other than real values",
        "other than real values",
    ),
    "pickled objects": (
        ".npy",
        npy(np.array([[Attack()]]), allow_pickle=True),
        "cannot be read",
        "cannot be read",
    ),
    "a pickle": (
        ".npy",
        lambda p: p.write_bytes(pickle.dumps(Attack())),
        "cannot be read",
        "cannot be read",
    ),
    "an npz called .npy": (".npy", lambda p: npz(p), "not an npy file", "not an npy file"),
    "npy that claims 4 GB": (
        ".npy",
        lambda p: raw_npy(p, (2**16, 2**16)),
        "cannot be read",
        "cannot be read",
    ),
    "npy cut off": (
        ".npy",
        damaged(lambda b: b[:-9], npy(TRUTH)),
        "cannot be read",
        "cannot be read",
    ),
    "npy stack": (".npy", npy(np.stack([TRUTH, TRUTH])), "one grey slice", "one grey slice"),
    "PNG cut off": (
        ".png",
        damaged(lambda b: b[:-30], png(TRUTH * 255)),
        "its end is missing",
        "its end is missing",
    ),
    "PNG flipped": (
        ".png",
        damaged(lambda b: flipped(b, len(b) // 2), png(EIGHT)),
        "cannot be read",
        "cannot be read",
    ),
    "PNG that claims 7 GB": (
        ".png",
        lambda p: raw_png(p, 60_000, 60_000),
        "claims to hold",
        "claims to hold",
    ),
    "PNG that claims 2 GB": (
        ".png",
        lambda p: raw_png(p, 32_000, 32_000),
        "claims to hold",
        "claims to hold",
    ),
    "colour PNG": (".png", png(np.dstack([TRUTH * 255] * 3)), None, None),
    "a TIFF called .png": (".png", tiff(), "not a PNG image", "not a PNG image"),
    "RGB TIFF": (".tif", tiff(np.dstack([TRUTH * 255] * 3), photometric="rgb"), None, None),
    "three colours": (
        ".png",
        png(np.dstack([THREE, TRUTH * 255, TRUTH])),
        "has 4 colours",
        "has 4 colours",
    ),
    # the next four were found by fuzzing
    "painted, too far apart": (
        ".tif",
        tiff(np.where(TRUTH == 1, -1.5e308, SHARES * 1.5e308)),
        "cannot be split by a threshold",
        "cannot be split by a threshold",
    ),
    "painted, wide integers": (
        ".tif",
        tiff(np.where(TRUTH == 1, 0, SHARES * 1e18).astype(np.int64)),
        None,
        None,
    ),
    "painted, half floats": (
        ".tif",
        tiff(np.where(TRUTH == 1, -6e4, SHARES * 6e4).astype(np.float16)),
        None,
        None,
    ),
    "painted, tiny": (".npy", npy(np.where(TRUTH == 1, 0, SHARES * 1e-200)), None, None),
    "0 and 128": (
        ".png",
        png(TRUTH * 128),
        "holds 0 and 128, .* but .* holds 0 and 255",
        "holds 0 and 128",
    ),
    "1 and 2": (
        ".tif",
        tiff(TRUTH + 1),
        "holds 1 and 2, .* but .* holds 0 and 255",
        "holds 1 and 2",
    ),
    "PNG with something behind": (
        ".png",
        lambda p: p.write_bytes(cv2.imencode(".png", TRUTH)[1].tobytes() + b"\n"),
        None,
        None,
    ),
    "0 and 1": (".png", png(TRUTH), None, None),
    "booleans": (".npy", npy(TRUTH == 1), None, None),
    "1-bit TIFF": (".tif", tiff(TRUTH == 1), None, None),
    "16-bit": (".tif", tiff(TRUTH.astype(np.uint16) * 65535), None, None),
    "Fortran order": (".npy", npy(np.asfortranarray(TRUTH)), None, None),
}


def split_file(content: object):
    """A writer of `split.json`."""
    return lambda path: path.write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


SPLITS = {  # case: (writer, what training says)
    "no JSON": (split_file("{"), "cannot be read as JSON"),
    "a list": (split_file([1]), "holds a list, expected an object"),
    "nested too deeply": (split_file("[" * 99_999), "cannot be read as JSON"),
    "a number of many digits": (
        split_file('{"train": ' + "9" * 9999 + "}"),
        "cannot be read as JSON",
    ),
    "no text": (lambda p: p.write_bytes(b"\xff\xfe\x00"), "cannot be read as JSON"),
    "a folder": (lambda p: p.mkdir(), "cannot be read as JSON"),
    "unknown part": (
        split_file({"train": ["s_00"], "trial": ["s_01"]}),
        "trial: not a part of a split",
    ),
    "missing stem": (
        split_file({"train": ["s_77"]}),
        "s_77: in train, but no labelled slice has this stem",
    ),
    "a stem twice": (split_file({"train": ["s_00", "s_00"]}), "s_00: stands in train and train"),
    "train and test": (
        split_file({"train": ["s_00"], "test": ["s_00"]}),
        "s_00: stands in train and test",
    ),
    "no list": (split_file({"train": "s_00"}), "train: expected a list of stems"),
    "numbers": (split_file({"train": [0]}), "train: expected a list of stems"),
    "nothing to learn from": (split_file({"train": [], "test": ["s_00"]}), "train: holds no slice"),
    "out of the folder": (
        split_file({"train": ["../../x"]}),
        r"\.\./\.\./x: in train, but no labelled slice",
    ),
    "a line break": (split_file({"train": ["a\nb"]}), r"a\\nb: in train, but no labelled slice"),
}
