"""Images that cannot be read: said, never taken for another class, and an error where a class has no others."""

from __future__ import annotations

import logging
import struct
from typing import Any

import numpy as np
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import Dataset

from mbj_plugin.command_line import UserError, reason
from mbj_plugin.longtail import images_of_classes
from mbj_plugin.timm.counts import dataset_labels

_logger = logging.getLogger("mbj_plugin")
# What Pillow raises for a broken file. A broken PNG is a SyntaxError.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class WrappedImages(Dataset):
    """A data set around another one, whose ``transform`` is this one's: timm's loaders set it."""

    dataset: Any

    @property
    def transform(self) -> Any:
        return self.dataset.transform

    @transform.setter
    def transform(self, value: Any) -> None:
        self.dataset.transform = value


class ReadableImages(WrappedImages):
    """timm's images, without what timm does with a file that it cannot read: take the next one, of any class.

    In training another image of the same class stands in, so that classes keep their share; in evaluation the image
    is left out (its class is -1). Files that can be read give what timm gives, bit for bit.

    Args:
        dataset: timm's.
        training: whether it is the training set.
    """

    def __init__(self, dataset: ImageDataset, training: bool) -> None:
        self.dataset, self.training = dataset, training
        self._of_class: list[np.ndarray] | None = None
        self._said: set[int] = set()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            image, target = self._read(index)
        except UNREADABLE as error:
            image, target = self._instead(index, error)
        image = image if self.transform is None else self.transform(image)
        return image, target

    def _read(self, index: int) -> tuple[Image.Image, int]:
        stream, target, *_ = self.dataset.reader[index]
        image: Image.Image = Image.open(stream)
        if self.dataset.input_img_mode:
            image = image.convert(self.dataset.input_img_mode)  # reads the pixels
        if target is None:
            return image, -1
        return image, target if self.dataset.target_transform is None else self.dataset.target_transform(target)

    def _instead(self, index: int, error: Exception) -> tuple[Image.Image, int]:
        if index not in self._said:
            self._said.add(index)
            instead = "another of its class is taken" if self.training else "it is left out"
            _logger.warning(f"Cannot read {self._name(index)} ({reason(error)[:120]}): {instead}.")
        if not self.training:
            return Image.new(self.dataset.input_img_mode or "RGB", (256, 256)), -1
        labels = dataset_labels(self.dataset)
        others = self.of_class(labels)[labels[index]]
        place = int(np.searchsorted(others, index))
        for other in (*others[place + 1 :], *others[:place]):
            try:
                return self._read(int(other))
            except UNREADABLE:
                continue
        raise UserError(f"class {labels[index]} has no image that can be read, {self._name(index)} is one of them")

    def of_class(self, labels: np.ndarray) -> list[np.ndarray]:
        """Indices of the images of each class."""
        if self._of_class is None:
            self._of_class = images_of_classes(labels, int(labels.max(initial=-1)) + 1)
        return self._of_class

    def _name(self, index: int) -> str:
        return str(self.dataset.reader.filename(index, absolute=True))

    def check(self, names: list[str] | None) -> None:
        """Raise ValueError where no image of some class can be read; one of each is tried, more where that fails.

        Args:
            names: of the classes.
        """
        part = "training" if self.training else "evaluation"
        for c, images in enumerate(self.of_class(dataset_labels(self.dataset))):
            first: str | None = None
            for index in images.tolist():
                try:
                    image = Image.open(self.dataset.reader[index][0])
                    image.draft("RGB", (64, 64))  # a JPEG is read in eighths, eight times as fast
                    image.load()
                    break
                except UNREADABLE as error:
                    first = first or f"{self._name(index)}: {reason(error)[:120]}"
            else:
                if first is not None:
                    which = f"of the {len(images)} {part} images of class {names[c] if names else c!r}"
                    raise ValueError(f"none {which} can be read ({first}): mend them, or take the class away")
