"""Pictures in messages: read from data URLs here, turned into a model's inputs here, never fetched from anywhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from veil.gateway import incoming
from veil.gateway.failures import ApiError, bad_parameter

if TYPE_CHECKING:
    from PIL.Image import Image

    from veil.gateway.tools import ChatTurn
    from veil.typing import Processor

PLACE = "\ufffc"
"""Where a picture stands in a message's text: Unicode's sign for an object."""

_MOST = 16
_MOST_PIXELS = 32 << 20
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_DATA = re.compile(r"data:image/[\w.+-]+;base64,")


class PicturePrompt(list[int]):
    """Token ids of a prompt with pictures. ``inputs`` go into the model beside them; ``mark`` differs with the pictures.

    From place ``settled`` on, no token is a picture's.
    """

    def __init__(self, ids: Sequence[int], inputs: Mapping[str, torch.Tensor], mark: str, settled: int) -> None:
        super().__init__(ids)
        self.inputs, self.mark, self.settled = dict(inputs), mark, settled


class Sight:
    """A model's processor, which says how its pictures look as numbers and how many tokens they take."""

    def __init__(self, processor: Processor, config: object) -> None:
        self._processor = processor
        self._token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)

    def prompt(self, text: str, pictures: Sequence[Image]) -> PicturePrompt:
        """A rendered chat and its pictures as inputs. `ApiError` where they do not fit together."""
        try:
            made = self._processor(text=[text], images=list(pictures), return_tensors="pt", add_special_tokens=False)
        except ValueError as error:
            said = " ".join(str(error).split())[:200]
            raise bad_parameter("messages", f"the pictures do not fit the model's chat template ({said})") from None
        ids = made.pop("input_ids")[0].tolist()
        made.pop("attention_mask", None)
        settled = max((place + 1 for place, token in enumerate(ids) if token == self._token), default=len(ids))
        digest = hashlib.sha256()
        for picture in pictures:
            digest.update(f"{picture.size}".encode() + picture.tobytes())
        return PicturePrompt(ids, made, digest.hexdigest(), settled)


def is_picture(part: object) -> bool:
    """Whether a part of a message is one."""
    return isinstance(part, incoming.OtherPart) and part.type in ("image_url", "input_image")


def read_picture(part: incoming.OtherPart, where: str) -> Image:
    """The picture of a part, as `PIL.Image` in RGB. `ApiError` 400 for addresses and for what is no picture."""
    import PIL.Image
    from PIL import ImageOps, UnidentifiedImageError

    said = (part.model_extra or {}).get("image_url")
    url = str(said.get("url") if isinstance(said, dict) else said)
    found = _DATA.match(url)
    if found is None:
        message = f"{where}: pictures are not fetched from addresses; send one as data:image/png;base64,…"
        raise ApiError(400, message, param="messages", code="unsupported_value")
    try:
        data = base64.b64decode(url[found.end() :], validate=True)
        with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise bad_parameter("messages", f"{where}: the picture has more than {_MOST_PIXELS:,} pixels")
            upright = ImageOps.exif_transpose(opened)
            return upright.convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise bad_parameter("messages", f"{where}: this is no whole picture; PNG, JPEG, WebP and GIF are taken") from None


def refuse_many(pictures: Sequence[object]) -> None:
    """`ApiError` for more pictures than a chat may have."""
    if len(pictures) > _MOST:
        raise bad_parameter("messages", f"a chat has at most {_MOST} pictures")


def in_parts(turns: Sequence[ChatTurn]) -> list[dict[str, object]]:
    """Turns as templates of models that see take them: contents are lists of texts and pictures."""
    return [{**turn, "content": _parts(str(turn["content"]))} for turn in turns]


def _parts(text: str) -> list[dict[str, str]]:
    made: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(PLACE)):
        made += [{"type": "image"}] if index else []
        made += [{"type": "text", "text": piece}] if piece else []
    return made
