"""What fast-reid imports. `setup.cfg` names the same packages in the extra `fastreid`; a test compares the two."""

# Module -> package that brings it.
NEEDED = {
    "torchvision": "torchvision",
    "faiss": "faiss-cpu",
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "tabulate": "tabulate",
    "tensorboard": "tensorboard",
    "termcolor": "termcolor",
    "yacs": "yacs",
}
# Fast-reid runs without them, but not all of it: what each is for.
OPTIONAL = {
    "Cython": ("Cython", "the fast evaluation"),
    "gdown": ("gdown", "MODEL.BACKBONE.PRETRAIN without PRETRAIN_PATH, which downloads weights"),
}
# They come with the packages above.
IMPLIED = {"PIL": "Pillow", "yaml": "PyYAML"}
EXTRA = (*NEEDED.values(), *(package for package, _ in OPTIONAL.values()))
INSTALL = f"pip install {' '.join(EXTRA)} && pip install --no-deps fastreid==1.4.0"
