"""A synthetic data set in the folder layout of Market-1501, drawn by numbers: figures, not people.

It exercises a re-ID run from end to end where no data set is at hand. It says nothing about any method on real images.
Each identity has its own clothes, hair, skin, build and bag; each of six cameras its own colours, light, blur and
background; figures move, turn, and are hidden in part. The training identities are long-tailed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CAMERAS = 6
SIZE = (32, 64)  # width, height of an image
DRAWN = 2  # images are drawn this many times larger, then reduced
FOLDER = "Market-1501-v15.09.15"


@dataclass(frozen=True)
class Plan:
    """How much is drawn: the first ``head`` training identities ``head_images`` times, the others ``tail_images``."""

    train: int = 150
    head: int = 10
    head_images: int = 60
    tail_images: int = 4
    test: int = 80
    test_images: int = 6
    seed: int = 0


def draw_dataset(root: Path | str, plan: Plan | None = None) -> Path:
    """Draw the whole set below ``root``, the folder that FASTREID_DATASETS should name.

    The same plan gives the same files everywhere. What a folder from an earlier call holds is drawn over.

    Returns:
        Folder of the set, with bounding_box_train, query and bounding_box_test.
    """
    plan = plan or Plan()
    folder = Path(root) / FOLDER
    cameras = [_Camera(np.random.default_rng((plan.seed, 1, number))) for number in range(CAMERAS)]
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for identity in range(1, plan.train + plan.test + 1):
        rng = np.random.default_rng((plan.seed, 2, identity))
        figure = _Figure(rng)
        training = identity <= plan.train
        images = (plan.head_images if identity <= plan.head else plan.tail_images) if training else plan.test_images
        order = rng.permutation(CAMERAS)
        for number in range(images):
            # The first test image of two cameras is a query; their matches come from the other cameras.
            camera = int(order[number % CAMERAS])
            part = "bounding_box_train" if training else ("query" if number < 2 else "bounding_box_test")
            name = f"{identity:04d}_c{camera + 1}s1_{number:06d}_00.jpg"
            cameras[camera].take(figure, rng).save(folder / part / name, quality=90)
    return folder


def _colour(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(20, 235, 3)


def _paint(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(colour.clip(0, 255).astype(int).tolist())


class _Figure:
    """What stays of an identity from image to image."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.top, self.bottom, self.bag = (_colour(rng) for _ in range(3))
        self.hair, self.skin = (
            rng.uniform(10, 200) * np.array([1, 0.8, 0.5]),
            rng.uniform(70, 230) * np.array([1, 0.8, 0.65]),
        )
        self.width, self.legs, self.has_bag = rng.uniform(0.38, 0.62), rng.uniform(0.38, 0.52), rng.random() < 0.4

    def draw(self, canvas: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
        """One pose: the figure leans, strides and turns a little each time."""
        centre, body = width * rng.normal(0.5, 0.05), width * self.width * rng.uniform(0.8, 1.1)
        head, hip = height * rng.uniform(0.05, 0.1), height * (0.95 - self.legs)
        neck, foot, stride = head + height * 0.14, height * rng.uniform(0.93, 0.99), body * rng.uniform(0.05, 0.4)
        left, right = centre - body / 2, centre + body / 2
        for side in (-1, 1):
            leg = [(centre + side * body / 6, hip), (centre + side * stride, foot)]
            canvas.line(leg, fill=_paint(self.bottom), width=int(body / 3))
        canvas.rectangle([left, neck, right, hip], fill=_paint(self.top))
        radius = height * 0.07
        canvas.ellipse([centre - radius, head, centre + radius, head + 2 * radius], fill=_paint(self.skin))
        # Seen from behind the whole head is hair.
        hair_end = head + radius * (2 if rng.random() < 0.4 else 0.8)
        canvas.ellipse([centre - radius, head - 2, centre + radius, hair_end], fill=_paint(self.hair))
        if self.has_bag and rng.random() < 0.7:
            canvas.rectangle([right - 4, hip - 18, right + 8, hip + 4], fill=_paint(self.bag))


class _Camera:
    """What all images of a camera share: colour cast, light, contrast, blur and background."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.cast, self.light, self.gamma = rng.uniform(0.65, 1.3, 3), rng.uniform(-35, 30), rng.uniform(0.7, 1.5)
        self.blur, self.noise = rng.uniform(0.2, 1.4), rng.uniform(3, 14)
        self.ground, self.wall = _colour(rng), _colour(rng)
        self.horizon = rng.uniform(0.3, 0.8)

    def take(self, figure: _Figure, rng: np.random.Generator) -> Image.Image:
        """One image of a figure."""
        width, height = SIZE[0] * DRAWN, SIZE[1] * DRAWN
        pixels = np.empty((height, width, 3))
        edge = int(height * np.clip(self.horizon + rng.normal(0, 0.05), 0.1, 0.9))
        pixels[:edge], pixels[edge:] = self.wall, self.ground
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        canvas = ImageDraw.Draw(image)
        figure.draw(canvas, width, height, rng)
        if rng.random() < 0.3:  # something stands in front
            x, y = rng.uniform(-0.2, 0.8) * width, rng.uniform(0.3, 0.9) * height
            box = [x, y, x + rng.uniform(0.2, 0.7) * width, y + 0.4 * height]
            canvas.rectangle(box, fill=_paint(_colour(rng)))
        image = image.rotate(rng.normal(0, 4), resample=Image.Resampling.BILINEAR, fillcolor=_paint(self.wall))
        image = image.filter(ImageFilter.GaussianBlur(self.blur)).resize(SIZE, Image.Resampling.BILINEAR)
        pixels = np.asarray(image, dtype=np.float64) / 255
        pixels = 255 * (pixels**self.gamma) * self.cast * rng.uniform(0.75, 1.25) + self.light
        pixels += rng.normal(0, self.noise, pixels.shape)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
