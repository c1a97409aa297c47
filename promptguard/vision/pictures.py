"""Pictures as requests bring them: from the bytes of a file to a `Verdict` about what they show.

The bytes that are judged are the bytes that another program will decode, so whatever two programs may show differently
is refused: see `promptguard.vision.files` for the form of the file. What is left is decoded by Pillow, made RGB and
resized to the size that the classifier was made for; the certifier judges that tensor, and certificates say so. Another
program's decoder and resizing may differ by little in every pixel: where that is in question, it counts against the
radius.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from promptguard.errors import FilterError, InvalidArgument, PictureRefused, PictureTooLarge, discreetly
from promptguard.types import Certificate, Certifier, Label, Verdict
from promptguard.vision import files
from promptguard.vision.files import jpeg, webp

MAX_PIXELS = 2**23
_MOST_PIXELS = 2**26  # below the number at which Pillow warns
# Black and white noise is up to 61 from the middle when its contrast is taken away, at any quality of Pillow's.
_MIDDLE, _GLARE = 128, 80
_MODES = frozenset({"1", "L", "P", "RGB", "LA", "RGBA"})


class Pictures:
    """Judges pictures: the `images` of a `promptguard.guard.Guard`.

    A verdict is the certifier's, about the decoded picture: RGB, resized to `size` (bilinear, antialiased, in whole
    256ths), a float32 tensor (3, height, width) in [0, 1]. Its threat moves that tensor, not the pixels of the file.
    Only HARMFUL keeps its certificate: that a class stays does not make a picture safe.

    Args:
        certifier: what judges the tensor.
        size: height and width that it is given.
        harmful: the class indices that are HARMFUL, all others being SAFE, for a certifier that answers with indices;
            None for one that merges classes itself.
        max_pixels: of a picture, read off its header; at most 2**26.
        max_pictures: different ones in a request.

    Raises:
        InvalidArgument: an argument means nothing.
    """

    def __init__(
        self,
        certifier: Certifier[torch.Tensor],
        size: tuple[int, int],
        *,
        harmful: Collection[int] | None = None,
        max_pixels: int = MAX_PIXELS,
        max_pictures: int = 8,
    ) -> None:
        if len(size) != 2 or min(size) < 1 or not 1 <= max_pixels <= _MOST_PIXELS or max_pictures < 1:
            raise InvalidArgument("a size is a height and a width; max_pixels is 1 to 2**26, max_pictures at least 1")
        if harmful is not None and (not harmful or not all(type(c) is int and c >= 0 for c in harmful)):
            raise InvalidArgument("harmful must be class indices, at least one")
        self.certifier, self.size, self.max_pictures = certifier, size, max_pictures
        self._harmful = None if harmful is None else frozenset(harmful)
        self._max_pixels = max_pixels

    def pixels(self, data: bytes) -> int:
        """How many pixels the header says; nothing is decoded.

        Raises:
            PictureRefused: it is no header of a picture.
            PictureTooLarge: more than `max_pixels`.
        """
        width, height = files.size_of(data)
        if width * height > self._max_pixels:
            raise PictureTooLarge(self._max_pixels)
        return width * height

    def tensor(self, data: bytes) -> torch.Tensor:
        """What the certifier is given.

        Raises:
            PictureRefused: the bytes are not one opaque, complete, upright picture that all programs show alike.
            PictureTooLarge: see `pixels`.
        """
        self.pixels(data)
        files.verify(data)
        height, width = self.size
        small = _decoded(data).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous().float().div_(255)

    def certify(self, x: bytes) -> Verdict:
        """Judge a picture.

        Args:
            x: the bytes of a file.

        Raises:
            PictureRefused: see `tensor`.
            PictureTooLarge: see `pixels`.
            FilterError: the certifier broke its contract, or answers with class indices and none is said to be harmful.
            PromptGuardError: the certifier's own.
        """
        return self._about(self.certifier.certify(self.tensor(x)))

    def _about(self, verdict: Verdict) -> Verdict:
        """A verdict about the tensor, in the words of a guard."""
        unit = f"picture resized to {self.size[0]} x {self.size[1]}"
        label, threat = self._merged(verdict.label), verdict.threat
        proved = verdict.certificate if label is Label.HARMFUL else None
        return replace(
            verdict,
            label=label,
            threat=threat and replace(threat, unit=unit),
            certificate=proved and self._certificate(proved, unit),
            parts=tuple(map(self._about, verdict.parts)),
        )

    def _certificate(self, certificate: Certificate, unit: str) -> Certificate:
        how = (
            f"the {unit} is the decoded file in RGB, each channel in [0, 1], bilinear with antialias: the norm is that "
            "of the change of this tensor, not of the file's own pixels"
        )
        label = self._merged(certificate.label)
        threat = replace(certificate.threat, unit=unit)
        return replace(certificate, label=label, threat=threat, assumes=(*certificate.assumes, how))

    def _merged(self, label: Label | int) -> Label:
        # What stays in a harmful class stays harmful: its certificate survives the merging.
        if isinstance(label, Label):
            return label
        if self._harmful is None:
            raise FilterError("the certifier answers with class indices: say which ones are harmful")
        return Label.HARMFUL if label in self._harmful else Label.SAFE


def _decoded(data: bytes) -> Image.Image:
    """A picture whose form is known to be fine, in RGB.

    Raises:
        PictureRefused: it cannot be decoded, is transparent, or is cut short inside.
    """
    kind = files.kind_of(data)
    shown = _opened(webp.with_alpha(data) if kind == "WEBP" else data, kind)
    if shown.mode not in _MODES or shown.size != files.size_of(data) or getattr(shown, "n_frames", 1) != 1:
        raise PictureRefused("Pillow reads something else than the file's header says")
    if shown.mode in {"LA", "RGBA"} and shown.getchannel("A").getextrema() != (255, 255):
        raise PictureRefused("the picture is transparent: what it shows depends on what is behind it")
    if shown.mode == "P" and int(np.array(shown).max()) >= len(shown.getpalette() or ()) // 3:
        raise PictureRefused("the picture uses colours that its palette does not have")
    if kind == "JPEG" and _opened(jpeg.with_more_data(data), kind).tobytes() != shown.tobytes():
        raise PictureRefused("the JPEG is cut short")
    if kind == "JPEG" and _is_glaring(jpeg.with_less_contrast(data)):
        raise PictureRefused("the JPEG has coefficients that programs may compute differently")
    return shown.convert("RGB")


def _is_glaring(weakened: bytes) -> bool:
    """Whether brightness or a colour of a JPEG without contrast is far from the middle."""
    stored = np.array(_opened(weakened, "JPEG", as_stored=True))
    return bool(stored.min() < _MIDDLE - _GLARE or stored.max() > _MIDDLE + _GLARE)


def _opened(data: bytes, kind: str, *, as_stored: bool = False) -> Image.Image:
    def work() -> Image.Image:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=[kind])
            if as_stored and image.mode == "RGB":
                image.draft("YCbCr", image.size)
            image.load()
        return image

    try:
        return discreetly("Pillow", work)
    except FilterError:
        raise PictureRefused("Pillow cannot decode the picture") from None
