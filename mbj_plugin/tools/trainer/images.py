"""Images that cannot be read: said, never taken for another class, and an error where a class has no others."""

from __future__ import annotations

import functools
import logging
import struct
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset

from mbj_plugin.command_line import UserError, reason
from mbj_plugin.longtail import images_of_classes
from mbj_plugin.timm.counts import dataset_labels

_logger = logging.getLogger("mbj_plugin")
# What Pillow raises for a broken file. A broken PNG is a SyntaxError.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class ReadableImages(ImageDataset):
    """timm's images, without what timm does with a file that it cannot read: take the next one, of any class.

    In training another image of the same class stands in, so that classes keep their share; in evaluation the image
    is left out (its class is -1). Files that can be read give what timm gives, bit for bit.

    Args:
        reader: timm's.
        input_img_mode: Pillow's mode of the images.
        training: whether it is the training set.
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
        if not self._said[index]:
            self._said[index] = True
            instead = "another of its class is taken" if self.training else "it is left out"
            _logger.warning(f"Cannot read {self._name(index)} ({reason(error)[:120]}): {instead}.")
        if not self.training:
            return Image.new(self.input_img_mode, (256, 256)), -1
        label = dataset_labels(self)[index]
        others = self.of_class[label]
        place = int(np.searchsorted(others, index))
        for other in (*others[place + 1 :], *others[:place]):
            try:
                return self._read(int(other))
            except UNREADABLE:
                continue
        raise UserError(f"class {label} has no image that can be read, {self._name(index)} is one of them")

    @functools.cached_property
    def of_class(self) -> list[np.ndarray]:
        """Indices of the images of each class."""
        labels = dataset_labels(self)
        return images_of_classes(labels, int(labels.max(initial=-1)) + 1)

    def _name(self, index: int) -> str:
        return str(self.filename(index, absolute=True))

    def check(self, names: list[str] | None) -> None:
        """Raise ValueError where no image of some class can be read; one of each is tried, more where that fails.

        Args:
            names: of the classes.
        """
        part = "training" if self.training else "evaluation"
        for c, images in enumerate(self.of_class):
            first: str | None = None
            for index in images.tolist():
                try:
                    image = Image.open(self.reader[index][0])
                    image.draft("RGB", (64, 64))  # a JPEG is read in eighths, eight times as fast
                    image.load()
                    break
                except UNREADABLE as error:
                    first = first or f"{self._name(index)}: {reason(error)[:120]}"
            else:
                if first is not None:
                    which = f"of the {len(images)} {part} images of class {names[c] if names else c!r}"
                    raise ValueError(f"none {which} can be read ({first}): mend them, or take the class away")
