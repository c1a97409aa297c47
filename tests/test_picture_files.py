"""Picture files: what two programs could show differently is refused, and what is accepted is decoded as it is."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import struct
import time
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pixels import PNG, Brightness, chunk, file_of, png, riff, scene, tensor_of, with_chunk, with_segment

from promptguard.certify.lipschitz import LipschitzCertifier
from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.errors import FilterError, InvalidArgument, PictureRefused, PictureTooLarge
from promptguard.types import Label
from promptguard.vision import files
from promptguard.vision.pictures import MAX_PIXELS, Pictures

SCENE = scene("sea")
WIDTH, HEIGHT = SCENE.size
PLAIN, JPEG, WEBP = file_of(SCENE), file_of(SCENE, "JPEG"), file_of(SCENE, "WEBP")


def pictures(size: tuple[int, int] = (HEIGHT, WIDTH), max_pixels: int = MAX_PIXELS) -> Pictures:
    return Pictures(GaussianSmoothing(Brightness(), 0.1, harmful={1}), size, max_pixels=max_pixels)


def turned(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def see_through(value: int = 0, mode: str = "RGBA") -> Image.Image:
    made = SCENE.convert(mode)
    made.paste((0,) * (len(mode) - 1) + (value,), (4, 4, 9, 9))
    return made


def hidden_alpha() -> bytes:
    """A lossless WebP with transparency in its data that its header denies."""
    made = bytearray(file_of(see_through(), "WEBP", lossless=True, exact=True))
    at = made.index(b"VP8L") + 8 + 4
    made[at] &= ~0x10
    return bytes(made)


def cut(data: bytes, share: float) -> bytes:
    """A JPEG that ends too early, and says that it does not."""
    return data[: int(share * len(data))] + b"\xff\xd9"


def cut_webp(share: float) -> bytes:
    return riff((b"VP8 ", WEBP[20 : 20 + int(share * (len(WEBP) - 20))]))


def xmp(orientation: int) -> bytes:
    return b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='%d'/>" % orientation


def xmp_of_another_kind() -> bytes:
    return b"http://ns.adobe.com/xap/1.0/\0" + "<x tiff:Orientation='6'/>".encode("utf-16")


def text_amid_the_data() -> bytes:
    at = PLAIN.index(b"IDAT")
    (size,) = struct.unpack_from(">I", PLAIN, at - 4)
    body, behind = PLAIN[at + 4 : at + 4 + size], PLAIN[at + 8 + size :]
    pieces = chunk(b"IDAT", body[:50]) + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", body[50:])
    return PLAIN[: at - 4] + pieces + behind


def rgb_by_its_ids() -> bytes:
    data = file_of(SCENE, "JPEG", keep_rgb=True)
    at = data.index(b"\xff\xee")
    (size,) = struct.unpack_from(">H", data, at + 2)
    return data[:at] + data[at + 2 + size :]


def extended(flags: int, *more: tuple[bytes, bytes], size: tuple[int, int] = SCENE.size) -> bytes:
    """A WebP with a header of its own before the picture."""
    (length,) = struct.unpack_from("<I", WEBP, 16)
    sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
    return riff((b"VP8X", bytes([flags, 0, 0, 0]) + sides), (b"VP8 ", WEBP[20 : 20 + length]), *more)


def second_header(data: bytes) -> bytes:
    """A JPEG with its frame header twice."""
    at = data.index(b"\xff\xc0")
    (size,) = struct.unpack_from(">H", data, at + 2)
    return data[:at] + data[at : at + 2 + size] + data[at:]


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes over and over: work without bytes."""
    data = file_of(SCENE, "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:-2] + data[at:-2] * 100 + data[-2:]


# Pieces of crafted JPEGs: a segment or a scan each, without the marks of beginning and end.
OTHER = scene("weapon", 1)
SIXTEEN = [[16] * 64] * 2


def pieces(data: bytes) -> list[bytes]:
    starts = [match.start() for match in re.finditer(rb"\xff[\xc0-\xcf\xd9-\xfe]", data)]
    return [data[at:end] for at, end in itertools.pairwise(starts)]


def is_a(piece: bytes, *markers: int) -> bool:
    return piece[1] in markers


def joined(made: Iterable[bytes]) -> bytes:
    return b"\xff\xd8" + b"".join(made) + b"\xff\xd9"


def quantisation(value: int) -> bytes:
    return b"\xff\xdb\0\x84" + b"".join(bytes([i]) + bytes([value]) * 64 for i in (0, 1))


def scans(image: Image.Image) -> list[bytes]:
    """Scans of the three components alone, by the codes of `apart`."""
    made = []
    for one, band in enumerate(image.convert("YCbCr").split(), 1):
        (scan,) = (piece for piece in pieces(file_of(band, "JPEG")) if is_a(piece, 0xDA))
        made.append(scan[:5] + bytes([one]) + scan[6:])
    return made


def apart(*made: bytes) -> bytes:
    """A JPEG of these scans."""
    tables = [piece for piece in pieces(file_of(SCENE.convert("L"), "JPEG")) if is_a(piece, 0xE0, 0xDB, 0xC4)]
    frame = struct.pack(">HHBHHB", 0xFFC0, 17, 8, HEIGHT, WIDTH, 3) + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
    return joined([*tables, frame, *made])


def late_table() -> bytes:
    """A progressive JPEG of little contrast; a table behind its data gives it sixteen times as much."""
    given = pieces(file_of(OTHER, "JPEG", progressive=True, qtables=SIXTEEN))
    return joined([quantisation(1), *(piece for piece in given if not is_a(piece, 0xDB)), quantisation(16)])


def too_large(progressive: bool) -> bytes:
    """A white cross on black that is grey where coefficients have 16 bits: 64 * 8 * 128 is 65536."""
    made = Image.new("L", (WIDTH, HEIGHT), 64)
    made.paste(192, (8, 8, 16, 24))
    given = pieces(file_of(made, "JPEG", qtables=[[1] * 64], progressive=progressive))
    return joined(quantisation(128) if is_a(piece, 0xDB) else piece for piece in given)


def restarts(order: Sequence[int], count: int = 0) -> bytes:
    """A JPEG of one coded row and the restart markers of that order between its copies; `count` more copies."""
    given = pieces(file_of(SCENE.convert("L"), "JPEG", restart_marker_rows=1))
    *before, scan = given
    head, *rows = re.split(rb"\xff[\xd0-\xd7]", scan)
    marks = [b"\xff" + bytes([0xD0 + i]) + row for i, row in zip(order, [*rows, *rows * count], strict=False)]
    return joined([*before, head, *marks])


def left_out(*markers_of_scans: int) -> bytes:
    """A progressive JPEG without some of its scans."""
    number, made = -1, []
    for piece in pieces(file_of(SCENE, "JPEG", progressive=True)):
        number += is_a(piece, 0xDA)
        if not (is_a(piece, 0xDA) and number in markers_of_scans):
            made.append(piece)
    return joined(made)


def large_codes() -> bytes:
    """A JPEG whose codes have a coefficient of twelve bits."""
    return JPEG.replace(b"\x01\x02\x03\x00\x04\x11", b"\x01\x02\x03\x00\x04\x1c", 1)


def ids_from_zero(data: bytes) -> bytes:
    """A JPEG whose components are numbered from 0."""
    made = []
    for piece in pieces(data):
        at = {0xC0: (10, 13, 16), 0xDA: (5, 7, 9)}.get(piece[1], ())
        made.append(bytes(byte - (i in at) for i, byte in enumerate(piece)))
    return joined(made)


def without_jfif(data: bytes) -> bytes:
    return joined(piece for piece in pieces(data) if not is_a(piece, 0xE0))


def extra_idat() -> bytes:
    """A PNG with bytes behind the end of its compressed data, inside the chunk."""
    rows = zlib.compress(b"\0" * 4 * 13) + b"hidden"
    return png(4, 4, b"").split(chunk(b"IDAT", zlib.compress(b"")))[0] + chunk(b"IDAT", rows) + chunk(b"IEND")


def broken_code() -> bytes:
    made = bytearray(PLAIN)
    made[-20] ^= 1
    return bytes(made)


MORE = [SCENE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
REFUSED = {
    "nothing": b"",
    "text": b"hello",
    "gif": file_of(SCENE, "GIF"),
    "bmp": file_of(SCENE, "BMP"),
    "tiff": file_of(SCENE, "TIFF"),
    "ico": file_of(SCENE, "ICO"),
    "signature only": PNG,
    "jpeg signature only": b"\xff\xd8\xff",
    "webp signature only": b"RIFF\x04\0\0\0WEBP",
    # More than one picture.
    "apng": file_of(SCENE, save_all=True, append_images=MORE),
    "animated webp": file_of(SCENE, "WEBP", save_all=True, append_images=MORE),
    "mpo": file_of(SCENE, "MPO", save_all=True, append_images=MORE),
    "two frames": second_header(JPEG),
    "two webp frames": riff((b"VP8 ", WEBP[20:]), (b"VP8 ", WEBP[20:])),
    # Transparency.
    "png alpha": file_of(see_through()),
    "png almost opaque": file_of(see_through(254)),
    "png grey alpha": file_of(see_through(mode="LA")),
    "png trns": file_of(SCENE.quantize(8), transparency=0),
    "png trns rgb": with_chunk(PLAIN, b"tRNS", b"\0\0\0\0\0\0"),
    "webp alpha": file_of(see_through(), "WEBP"),
    "webp lossless alpha": file_of(see_through(), "WEBP", lossless=True, exact=True),
    "webp hidden alpha": hidden_alpha(),
    # Rotation.
    "jpeg turned": file_of(SCENE, "JPEG", exif=turned(6)),
    "jpeg mirrored": file_of(SCENE, "JPEG", exif=turned(2)),
    "png turned": file_of(SCENE, exif=turned(6)),
    "webp turned": file_of(SCENE, "WEBP", exif=turned(6)),
    "jpeg turned by xmp": with_segment(JPEG, 0xE1, xmp(6)),
    "jpeg turned by xmp in utf-16": with_segment(JPEG, 0xE1, xmp_of_another_kind()),
    "png turned by xmp": with_chunk(PLAIN, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
    "png turned by a text": with_chunk(PLAIN, b"tEXt", b"Raw profile type exif\0\nexif\n4\n00"),
    "two exifs": with_segment(file_of(SCENE, "JPEG", exif=turned(1)), 0xE1, b"Exif\0\0" + turned(1).tobytes()[6:]),
    "exif that cannot be read": with_segment(JPEG, 0xE1, b"Exif\0\0XX*\0\x08\0\0\0"),
    "exif that ends early": with_segment(JPEG, 0xE1, b"Exif\0\0II*\0\x08\0\0\0\x05\0"),
    # Colours.
    "cmyk": file_of(SCENE.convert("CMYK"), "JPEG"),
    "rgb jpeg": file_of(SCENE, "JPEG", keep_rgb=True),
    "rgb jpeg by its ids": rgb_by_its_ids(),
    "adobe rgb": with_segment(JPEG, 0xEE, b"Adobe\0\x64\0\0\0\0\0"),
    "jpeg profile": file_of(SCENE, "JPEG", icc_profile=b"x" * 200),
    "png profile": file_of(SCENE, icc_profile=b"x" * 200),
    "webp profile": file_of(SCENE, "WEBP", icc_profile=b"x" * 200),
    "gamma": with_chunk(PLAIN, b"gAMA", struct.pack(">I", 1000)),
    "chroma": with_chunk(PLAIN, b"cHRM", struct.pack(">8I", *range(8))),
    "16 bits": file_of(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999)),
    "16 bits rgb": png(2, 2, b"\0" * 2 * 13, depth=16),
    "12 bits": JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "palette too short": png(2, 1, b"\0\0\3", colour=3, before=chunk(b"PLTE", bytes(9))),
    "no palette": png(2, 1, b"\0\0\1", colour=3),
    # Form.
    "long pixels": with_chunk(PLAIN, b"pHYs", struct.pack(">IIB", 1, 9, 0)),
    "jpeg long pixels": file_of(SCENE, "JPEG", dpi=(72, 144)),
    "jpeg data before the header": JPEG[:2] + b"\xff\xda\0\2" + JPEG[2:],
    "webp that says it is animated": extended(0x02),
    "webp that says it is transparent": extended(0x10),
    "webp that says it has a profile": extended(0x20),
    "webp turned by xmp": extended(0x04, (b"XMP ", b"<x tiff:Orientation='6'/>")),
    "webp of another canvas": extended(0, size=(WIDTH + 1, HEIGHT)),
    "webp with a chunk more": extended(0, (b"junk", b"")),
    "webp says it is longer": WEBP[:4] + struct.pack("<I", len(WEBP) - 4) + WEBP[8:],
    "webp says it is shorter": WEBP[:4] + struct.pack("<I", len(WEBP) - 10) + WEBP[8:],
    "unknown chunk": with_chunk(PLAIN, b"caBX", b"x"),
    "unknown segment": with_segment(JPEG, 0xE2, b"MPF\0"),
    "wrong crc": broken_code(),
    "wrong crc of the end": PLAIN[:-1] + bytes([PLAIN[-1] ^ 1]),
    "data in two pieces": text_amid_the_data(),
    "five bits": with_chunk(PLAIN, b"sBIT", b"\5\5\5"),
    "png bytes behind": PLAIN + b"PK\3\4",
    "jpeg bytes behind": JPEG + b"<html>",
    "jpeg behind jpeg": JPEG + JPEG,
    "webp bytes behind": WEBP + b"xx",
    "bytes behind in the data": extra_idat(),
    "too few rows": png(4, 4, b"\0" * 3 * 13),
    "too many rows": png(4, 4, b"\0" * 5 * 13),
    "png cut": PLAIN[:-30],
    "png without end": PLAIN[:-12],
    "jpeg cut": JPEG[:-30],
    "jpeg cut and closed": cut(JPEG, 0.6),
    "jpeg cut late and closed": cut(JPEG, 0.97),
    "progressive cut and closed": cut(file_of(SCENE, "JPEG", progressive=True), 0.8),
    "restarts cut and closed": cut(file_of(SCENE, "JPEG", restart_marker_blocks=2), 0.97),
    "webp cut": WEBP[:-30],
    "webp cut and closed": cut_webp(0.7),
    "webp cut late and closed": cut_webp(0.95),
    "webp says it is large": WEBP[:27] + bytes([WEBP[27] | 0x40]) + WEBP[28:],
    "many scans": many_scans(),
    # Pictures that Pillow shows, and other decoders otherwise.
    "a component twice": apart(*scans(SCENE), *scans(OTHER)),
    "a component never": apart(*scans(SCENE)[:1]),
    "a table between scans": apart(scans(SCENE)[0], quantisation(60), *scans(SCENE)[1:]),
    "a table behind the scans": late_table(),
    "bits that never come": left_out(9),
    "coefficients that never come": left_out(2, 7),
    "refined before it is there": left_out(0),
    "restarts out of order": restarts([0, 0, 1]),
    "restarts that are skipped": restarts([7, 7, 7, 0, 1, 2], 1),
    "a restart too many": restarts([0, 1, 2, 3], 1),
    "restarts without an interval": restarts([0, 1, 2]).replace(b"\xff\xdd\0\4\0\5", b"", 1),
    "coefficients over 16 bits": too_large(progressive=False),
    "progressive coefficients over 16 bits": too_large(progressive=True),
    "codes over 8 bits": large_codes(),
    "ids of nobody": ids_from_zero(without_jfif(JPEG)),
}
PASSED = {
    "png": PLAIN,
    "palette": file_of(SCENE.quantize(200)),
    "four colours": file_of(SCENE.quantize(4)),
    "grey": file_of(SCENE.convert("L")),
    "black and white": file_of(SCENE.convert("1")),
    "opaque alpha": file_of(SCENE.convert("RGBA")),
    "opaque grey alpha": file_of(SCENE.convert("LA")),
    "upright png": file_of(SCENE, exif=turned(1)),
    "resolution": file_of(SCENE, dpi=(72, 72)),
    "srgb": with_chunk(with_chunk(PLAIN, b"sRGB", b"\0"), b"gAMA", struct.pack(">I", 45455)),
    "all bits": with_chunk(PLAIN, b"sBIT", b"\x08\x08\x08"),
    "comment": with_chunk(PLAIN, b"tEXt", b"Software\0x"),
    "jpeg": JPEG,
    "jpeg 444": file_of(SCENE, "JPEG", subsampling=0, quality=100),
    "jpeg grey": file_of(SCENE.convert("L"), "JPEG"),
    "jpeg in three scans": apart(*scans(SCENE)),
    "jpeg in order": restarts([0, 1, 2]),
    "jpeg numbered from 0": ids_from_zero(JPEG),
    "progressive": file_of(SCENE, "JPEG", progressive=True),
    "restarts": file_of(SCENE, "JPEG", restart_marker_blocks=2),
    "progressive restarts": file_of(SCENE, "JPEG", progressive=True, restart_marker_blocks=3),
    "optimised": file_of(SCENE, "JPEG", optimize=True),
    "jpeg comment": file_of(SCENE, "JPEG", comment=b"x"),
    "upright jpeg": file_of(SCENE, "JPEG", exif=turned(1), dpi=(72, 72)),
    "upright by xmp": with_segment(JPEG, 0xE1, xmp(1)),
    "webp": WEBP,
    "webp lossless": file_of(SCENE, "WEBP", lossless=True),
    "webp opaque alpha": file_of(SCENE.convert("RGBA"), "WEBP", lossless=True),
    "extended webp": extended(0),
    "webp upright by xmp": extended(0x04, (b"XMP ", b"<x tiff:Orientation='1'/>")),
    "upright webp": file_of(SCENE, "WEBP", exif=turned(1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_shown_differently_is_refused(name: str) -> None:
    with pytest.raises(PictureRefused):
        pictures().tensor(REFUSED[name])


# What only the pixels show.
INSIDE = {
    "png alpha", "png almost opaque", "png grey alpha", "webp lossless alpha", "webp hidden alpha", "palette too short",
    "jpeg cut and closed", "jpeg cut late and closed", "progressive cut and closed", "restarts cut and closed",
    "webp cut and closed", "webp cut late and closed", "coefficients over 16 bits",
    "progressive coefficients over 16 bits",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - INSIDE))
def test_most_of_it_is_refused_by_the_form_alone(name: str) -> None:
    """Without a decoder, whose own refusals may change."""
    with pytest.raises(PictureRefused):
        files.verify(REFUSED[name])


@pytest.mark.parametrize("name", PASSED)
def test_plain_files_are_read_as_they_are(name: str) -> None:
    shown = Image.open(io.BytesIO(PASSED[name]))
    assert torch.equal(pictures().tensor(PASSED[name]), tensor_of(shown))
    assert pictures().pixels(PASSED[name]) == WIDTH * HEIGHT


def test_interlaced_pictures_are_read() -> None:
    """Pillow writes none: seven passes of a picture in one colour."""
    for width, height in ((1, 1), (5, 3), (8, 8), (9, 17)):
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        sizes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in passes]
        rows = b"".join(b"\0" + b"\x33" * 3 * w for w, h in sizes if w for _ in range(h))
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
        data = PNG + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")
        assert torch.equal(pictures((height, width)).tensor(data), torch.full((3, height, width), 0.2))
        with pytest.raises(PictureRefused):
            pictures().tensor(PNG + header + chunk(b"IDAT", zlib.compress(rows[:-1])) + chunk(b"IEND"))


@pytest.mark.parametrize("quality", [1, 5, 10, 30, 50, 75, 90, 98, 100])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_glaring_pictures_of_any_quality_are_read(quality: int, subsampling: int) -> None:
    """Black, white and colours in noise: no picture has larger coefficients."""
    noise = np.random.default_rng(quality).integers(0, 2, (HEIGHT, WIDTH, 3)).astype(np.uint8) * 255
    for shown in (Image.fromarray(noise), Image.fromarray(noise[..., 0]).convert("RGB")):
        data = file_of(shown, "JPEG", quality=quality, subsampling=subsampling, progressive=True)
        assert torch.equal(pictures().tensor(data), tensor_of(Image.open(io.BytesIO(data))))


def test_what_is_refused_is_what_pillow_alone_would_show() -> None:
    """Without its check each of these would be judged as the picture that Pillow shows."""
    grey = np.array(Image.open(io.BytesIO(REFUSED["coefficients over 16 bits"])))
    assert grey.min() == grey.max() == 128
    faint = np.array(Image.open(io.BytesIO(REFUSED["a table behind the scans"])))
    assert 5 * faint.std() < np.array(OTHER).std()


BOMBS = {
    "png": png(50_000, 50_000, b""),
    "jpeg": JPEG.replace(struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 50_000, 50_000)),
    "webp": WEBP[:26] + struct.pack("<HH", 16_383, 16_383) + WEBP[30:],
    "webp canvas": riff((b"VP8X", b"\0" * 4 + b"\xff\xff\0" * 2), (b"VP8 ", WEBP[20:26] + b"\xff\x3f" * 2)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a bomb reached the decoder")

    monkeypatch.setattr(Image, "open", never)
    monkeypatch.setattr(zlib, "decompressobj", never)
    start = time.process_time()
    with pytest.raises((PictureTooLarge, PictureRefused)) as caught:
        pictures().tensor(BOMBS[name])
    assert caught.type is PictureTooLarge or name == "webp canvas"
    assert time.process_time() - start < 0.5


def test_work_without_bytes_is_refused_before_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan costs a pass over all coefficients, however short it is."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it reached the decoder")

    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(PictureRefused, match="not one picture"):
        pictures().tensor(REFUSED["many scans"])


def test_the_limit_of_pixels_is_exact() -> None:
    pictures(max_pixels=WIDTH * HEIGHT).tensor(PLAIN)
    with pytest.raises(PictureTooLarge, match=f"more than {WIDTH * HEIGHT - 1} pixels"):
        pictures(max_pixels=WIDTH * HEIGHT - 1).tensor(PLAIN)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 2_000_000,
        b"\xff\xd8\xff\xda\0\2" + b"\xff" * 2_000_000,
        b"\xff\xd8" + b"\xff\xfe\0\2" * 400_000,
        PLAIN[:33] + chunk(b"tIME") * 150_000 + PLAIN[33:],
        b"RIFF" + struct.pack("<I", 4 + 8 * 200_000) + b"WEBP" + b"junk\0\0\0\0" * 200_000,
    ],
    ids=["fill", "fill in a scan", "segments", "chunks", "webp chunks"],
)
def test_hostile_forms_cost_little(data: bytes) -> None:
    start = time.process_time()
    with contextlib.suppress(PictureRefused):
        pictures().tensor(data)
    assert time.process_time() - start < 5


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([PLAIN, JPEG, WEBP]), st.data())
def test_a_damaged_file_is_refused_or_read_and_nothing_else(data: bytes, draw: st.DataObject) -> None:
    made = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        made[draw.draw(st.integers(0, len(made) - 1))] = draw.draw(st.integers(0, 255))
    made = made[: draw.draw(st.integers(0, len(made)) | st.just(len(made)))]
    try:
        found = pictures().tensor(bytes(made))
    except (PictureRefused, PictureTooLarge):
        return
    shown = Image.open(io.BytesIO(made)).convert("RGB")  # of another size, perhaps
    assert torch.equal(found, tensor_of(shown.resize(SCENE.size, Image.Resampling.BILINEAR)))
    if data is PLAIN:  # of which every bit is under a code
        assert bytes(made) == PLAIN


@given(st.binary(max_size=60), st.sampled_from([PNG, b"\xff\xd8\xff", b"RIFF\x30\0\0\0WEBPVP8X", b""]))
def test_noise_is_refused(data: bytes, before: bytes) -> None:
    with pytest.raises((PictureRefused, PictureTooLarge)):
        pictures().tensor(before + data)


def test_errors_say_nothing_of_the_picture() -> None:
    for data in REFUSED.values():
        with pytest.raises(PictureRefused) as caught:
            pictures().tensor(data)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None or caught.value.__suppress_context__


# What is judged.


def test_the_tensor_is_the_picture_resized() -> None:
    found = pictures((8, 10)).tensor(PLAIN)
    assert found.shape == (3, 8, 10)
    assert found.dtype is torch.float32
    wanted = torch.nn.functional.interpolate(tensor_of(SCENE)[None], (8, 10), mode="bilinear", antialias=True)[0]
    assert float((found - wanted).abs().max()) <= 1.5 / 255
    assert torch.equal((found * 255).round() / 255, found)


def test_nothing_of_the_picture_goes_unseen() -> None:
    """Every pixel moves the tensor: none falls between the samples of the resizing."""
    pixel = Image.new("RGB", (64, 64))
    weight = np.zeros((64, 64))
    for x in range(64):
        for y in range(0, 64, 7):
            bright = pixel.copy()
            bright.paste((255, 255, 255), (x, y, x + 1, y + 1))
            weight[y, x] = float(pictures((16, 16)).tensor(file_of(bright)).sum())
    assert (weight[::7] > 0).all()


def linear() -> torch.nn.Sequential:
    """Three classes by the mean of each channel."""
    layer = torch.nn.Linear(3 * 16, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3).repeat_interleave(16, 1))
        layer.bias.zero_()
    return torch.nn.Sequential(torch.nn.Flatten(), layer).eval()


@pytest.mark.parametrize("kind", ["smoothing", "lipschitz"])
def test_class_indices_are_merged_or_refused(kind: str) -> None:
    sampling = ImageSampling(samples=200, selection=20)
    certifier = (
        GaussianSmoothing(linear(), 0.1, sampling=sampling)
        if kind == "smoothing"
        else LipschitzCertifier(linear(), (3, 4, 4))
    )
    with pytest.raises(FilterError, match="say which ones are harmful"):
        Pictures(certifier, (4, 4)).certify(PLAIN)
    verdict = Pictures(certifier, (4, 4), harmful={2}).certify(PLAIN)
    assert verdict.label is Label.HARMFUL
    assert verdict.certificate is not None
    assert verdict.certificate.label is Label.HARMFUL
    assert verdict.threat is not None
    assert verdict.threat.unit == verdict.certificate.threat.unit == "picture resized to 4 x 4"
    assert "bilinear" in verdict.certificate.assumes[-1]
    sentence = verdict.certificate.sentence()
    assert "any change of the picture resized to 4 x 4 of Euclidean norm at most" in sentence
    assert "this picture resized to 4 x 4 stays harmful" in sentence


def test_safe_is_never_certified() -> None:
    sampling = ImageSampling(samples=200, selection=20)
    for certifier in (
        GaussianSmoothing(linear(), 0.1, sampling=sampling),
        GaussianSmoothing(linear(), 0.1, harmful={0, 1}, sampling=sampling),
        LipschitzCertifier(linear(), (3, 4, 4)),
    ):
        verdict = Pictures(certifier, (4, 4), harmful={0, 1}).certify(PLAIN)
        assert (verdict.label, verdict.certificate) == (Label.SAFE, None)


def test_an_abstention_stays_one() -> None:
    grey = file_of(Image.new("RGB", (4, 4), (127, 128, 127)))
    sampling = ImageSampling(samples=100, selection=10)
    verdict = Pictures(GaussianSmoothing(Brightness(), 0.5, harmful={1}, sampling=sampling), (4, 4)).certify(grey)
    assert verdict.label is Label.ABSTAIN
    assert verdict.certificate is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": (0, 4)},
        {"size": (4,)},
        {"max_pixels": 0},
        {"max_pixels": 2**26 + 1},
        {"max_pictures": 0},
        {"harmful": []},
        {"harmful": [-1]},
        {"harmful": [True]},
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        Pictures(GaussianSmoothing(Brightness(), 0.1, harmful={1}), **{"size": (4, 4), **arguments})  # type: ignore[arg-type]


def test_headers_alone_give_the_size() -> None:
    assert {files.size_of(data) for data in (PLAIN, JPEG, WEBP)} == {SCENE.size}
    assert files.size_of(PLAIN[:33]) == SCENE.size
