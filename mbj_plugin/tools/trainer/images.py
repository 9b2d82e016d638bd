"""Images that cannot be read: said, never taken for another class, and an error where a class has no others."""

from __future__ import annotations

import logging
import struct
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset

from mbj_plugin.command_line import UserError, reason
from mbj_plugin.timm.counts import dataset_labels

_logger = logging.getLogger("mbj_plugin")
# What Pillow raises for a broken file. A broken PNG is a SyntaxError.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class ReadableImages(ImageDataset):
    """timm's images, without what timm does with a file that it cannot read: take the next one, of any class.

    In training another image of the same class stands in, so that classes keep their share; in evaluation the image is
    left out (its class is -1). Files that can be read give what timm gives, bit for bit.
    """

    def __init__(self, reader: Any, input_img_mode: str, training: bool) -> None:
        super().__init__("", reader, input_img_mode=input_img_mode)
        self.training = training
        #: Which files were said to be unreadable, shared with the processes that load images.
        self._said = torch.zeros(len(reader), dtype=torch.bool).share_memory_()

    def __getitem__(self, index: int) -> Any:
        try:
            image, target = self._read(index)
        except UNREADABLE as error:
            image, target = self._instead(index, error)
        return image if self.transform is None else self.transform(image), target

    def _read(self, index: int) -> tuple[Image.Image, int]:
        stream, target, *_ = self.reader[index]
        return Image.open(stream).convert(self.input_img_mode), target  # which reads the pixels

    def _instead(self, index: int, error: Exception) -> tuple[Image.Image, int]:
        name = self.filename(index, absolute=True)
        if not self._said[index]:
            self._said[index] = True
            instead = "another of its class is taken" if self.training else "it is left out"
            _logger.warning(f"Cannot read {name} ({reason(error)[:120]}): {instead}.")
        if not self.training:
            return Image.new(self.input_img_mode, (256, 256)), -1
        labels = dataset_labels(self)
        others = np.flatnonzero(labels == labels[index])
        for other in (*others[others > index], *others[others < index]):
            try:
                return self._read(int(other))
            except UNREADABLE:
                continue
        raise UserError(f"class {labels[index]} has no image that can be read, {name} is one of them")
