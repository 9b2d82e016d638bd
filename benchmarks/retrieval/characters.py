"""Characters as re-ID data sets: a character is an identity; Omniglot's drawer, or a font's family, is a camera.

Omniglot's background set is real and anybody may use it (B. Lake et al., Science 2015, MIT licence). 20 people drew
every character once, so an <H, S> edition cuts all characters but H from 20 images to S. Test characters are of other
alphabets than training ones.
"""

from __future__ import annotations

import os
import re
from glob import glob
from pathlib import Path

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

PARTS = ("bounding_box_train", "query", "bounding_box_test")


@DATASET_REGISTRY.register()
class Omniglot(ImageDataset):
    """The first 20 alphabets for training, the last 10 for test; drawers 0-3 of these are the queries."""

    dataset_name = "omniglot"
    written_by = "python tools/write_omniglot.py ARCHIVE ROOT"

    def __init__(self, root: str = "datasets", **kwargs) -> None:
        folder = Path(root) / self.dataset_name
        train, query, gallery = (str(folder / part) for part in PARTS)
        self.check_before_run([train, query, gallery])
        super().__init__(
            lambda: self.process_dir(train),
            lambda: self.process_dir(query, is_train=False),
            lambda: self.process_dir(gallery, is_train=False),
            **kwargs,
        )

    def check_before_run(self, required_files: list[str]) -> None:
        """Raises FileNotFoundError where a folder is missing, and says how to make it."""
        for path in required_files:
            if not os.path.isdir(path):
                raise FileNotFoundError(
                    f"{path} is not there: write it by `{self.written_by}`, and set the environment variable "
                    "FASTREID_DATASETS to ROOT (default: ./datasets)"
                )

    def process_dir(self, dir_path: str, is_train: bool = True) -> list[tuple]:
        """(path, identity, camera) of each image; of the training set as text, as fast-reid's sets have it."""
        items = []
        for path in sorted(glob(os.path.join(dir_path, "*.png"))):
            name = re.match(r"(\d+)_c(\d+)_", os.path.basename(path))
            if name is None:
                raise ValueError(f"{path} is not called IDENTITY_cCAMERA_NAME.png: take it out of there")
            identity, camera = map(int, name.groups())
            named = (f"{self.dataset_name}_{identity}", f"{self.dataset_name}_{camera}")
            items.append((path, *named) if is_train else (path, identity, camera))
        return items


@DATASET_REGISTRY.register()
class OmniglotVal(Omniglot):
    """Validation, for choices: the first 15 alphabets for training, the next 5 for test."""

    dataset_name = "omniglot-validation"


@DATASET_REGISTRY.register()
class Glyphs(Omniglot):
    """Rendered: Latin for training, Greek and Cyrillic for test, where a fifth of the families are queries."""

    dataset_name = "glyphs"
    written_by = "python tools/write_glyphs.py FONTS ROOT"
