"""Images that cannot be read: named, and in training replaced by another of the same identity."""

from __future__ import annotations

import logging
import struct

from PIL import Image

from fastreid_today.changes import replaces

logger = logging.getLogger("fastreid.today")
# What Pillow raises for a broken file. A broken PNG is a SyntaxError.
UNREADABLE = (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
_said: set[str] = set()


@replaces("data.common:CommDataset.__getitem__", "one image that is cut short ends the run, and nothing says which")
def broken_images(read, self, index):
    """In training another image of the same identity stands in, with a warning for each file; in evaluation, and where
    no other can be read, a ValueError names it."""
    try:
        return read(self, index)
    except UNREADABLE as error:
        path, identity = self.img_items[index][:2]
        if self.relabel:
            if path not in _said:
                _said.add(path)
                logger.warning(f"Cannot read {path} ({error}): another image of its identity is taken")
            order = [*range(index + 1, len(self.img_items)), *range(index)]
            for other in (place for place in order if self.img_items[place][1] == identity):
                try:
                    return read(self, other)
                except UNREADABLE:
                    continue
        raise ValueError(f"cannot read the image {path} ({error}): mend it, or take it away") from error
