"""Any of timm's models as a fast-reid backbone: ``MODEL.BACKBONE.NAME: build_timm_backbone``, ``DEPTH`` its timm name.

The file needs fast-reid and timm alone, so that an exported run can take it along (mbj_plugin.tools.fastreid.export).
"""

from __future__ import annotations

import copy
import difflib
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import Tensor, nn

logger = logging.getLogger("fastreid.mbj_plugin")
# timm's models have their own; fast-reid's default of each.
FOREIGN = {"NORM": "BN", "WITH_IBN": False, "WITH_SE": False, "WITH_NL": False}


class TimmBackbone(nn.Module):
    """A timm model without pooling and classifier.

    Args:
        model: of timm's, made with ``num_classes=0``.
        size: (height, width) of an image to try it on.

    Attributes:
        feat_dim: channels of its map.
    """

    model: Any  # of a class of timm's

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        super().__init__()
        # Tried on a copy: a forward pass moves statistics, and some models keep what they computed in evaluation.
        self.model = trial = copy.deepcopy(model).eval()
        images = torch.zeros(2, 3, *size)
        with torch.no_grad():
            features = trial.forward_features(images)
            # Tokens of a ViT are (B, N, C), and some models have the channels last.
            self.gives_map = features.ndim == 4 and features.shape[1] == model.num_features
            self.map_shape = tuple(self(images).shape[1:])
        self.feat_dim = self.map_shape[0]
        trial.train()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            self(torch.rand(images.shape)).square().sum().backward()
        self.model = model.train()
        # Layers between the map and timm's classifier: DistributedDataParallel waits for gradients of what trains.
        for parameter, tried in zip(model.parameters(), trial.parameters(), strict=True):
            parameter.requires_grad_(tried.grad is not None)

    def forward(self, images: Tensor) -> Tensor:
        """(B, feat_dim, h, w) map of (B, 3, H, W) images: of a ViT its patch tokens behind the last norm."""
        if self.gives_map:
            return self.model.forward_features(images)
        options = {"indices": 1, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        features = self.model.forward_intermediates(images, **options)[-1]
        if isinstance(getattr(self.model, "norm", None), nn.Identity) and hasattr(self.model, "fc_norm"):
            # Trained behind the pooling, so the only last norm that there is.
            features = self.model.fc_norm(features.movedim(1, -1)).movedim(-1, 1)
        return features


def build_timm_backbone(cfg) -> nn.Module:
    """The timm model that MODEL.BACKBONE.DEPTH names. Sets MODEL.BACKBONE.FEAT_DIM, which the head reads after it.

    Raises:
        ValueError: for a name, image size, weights or key of MODEL.BACKBONE that it cannot take.
        ModuleNotFoundError: without timm.
    """
    node, name = cfg.MODEL.BACKBONE, str(cfg.MODEL.BACKBONE.DEPTH)
    _check_name(name)
    for key, default in FOREIGN.items():
        if node[key] != default:
            raise ValueError(f"MODEL.BACKBONE.{key} {node[key]} is for fast-reid's own backbones: leave it {default}")
    if cfg.MODEL.META_ARCHITECTURE == "MGN":
        raise ValueError("MODEL.META_ARCHITECTURE MGN takes fast-reid's ResNet apart: set it to Baseline")
    options = _options(cfg, name)
    backbone = _build(name, options, cfg.INPUT.SIZE_TRAIN)
    if node.PRETRAIN:
        with torch.random.fork_rng(devices=[]):  # the head's weights are the same with and without
            backbone = _pretrained(name, options, node.PRETRAIN_PATH, cfg.INPUT.SIZE_TRAIN)
        _check_pixels(cfg, backbone.model)
    node["FEAT_DIM"] = backbone.feat_dim  # as an item, for the config may be frozen
    shapes = [" x ".join(map(str, shape)) for shape in ((3, *cfg.INPUT.SIZE_TRAIN), backbone.map_shape)]
    logger.info(f"timm's {name}: {' -> '.join(shapes)}, so MODEL.BACKBONE.FEAT_DIM is {backbone.feat_dim}")
    return backbone


if build_timm_backbone.__name__ not in BACKBONE_REGISTRY._obj_map:  # a copy of this file goes with an exported run
    BACKBONE_REGISTRY.register(build_timm_backbone)


def _timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "MODEL.BACKBONE.NAME build_timm_backbone needs timm: pip install timm", name=error.name
        ) from error
    return timm


def _check_name(name: str) -> None:
    timm = _timm()
    known = [*timm.list_models(), *timm.list_pretrained()]  # without and with the name of weights
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "timm.list_models() has the names, such as resnet50"
        raise ValueError(
            f"MODEL.BACKBONE.DEPTH must name a model of timm for build_timm_backbone, got {name!r}: {hint}"
        )


def _options(cfg, name: str) -> dict[str, Any]:
    """Arguments of timm's create_model for the run's image sizes."""
    train, test = tuple(cfg.INPUT.SIZE_TRAIN), tuple(cfg.INPUT.SIZE_TEST)
    options: dict[str, Any] = {"num_classes": 0}
    if _timm().get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = train
        if train != test:
            options["dynamic_img_size"] = True
    elif cfg.MODEL.BACKBONE.LAST_STRIDE == 1 and _has_last_stride(name, options):
        options["output_stride"] = 16
    return options


def _has_last_stride(name: str, options: dict[str, Any]) -> bool:
    """Whether timm can leave out the model's last stride; some models have the argument and refuse any value."""
    with torch.random.fork_rng(devices=[]):
        try:
            kind = type(_timm().create_model(name, **options))
            if "output_stride" not in inspect.signature(kind).parameters:
                return False
            _timm().create_model(name, output_stride=16, **options)
        except (AssertionError, NotImplementedError):
            return False
    return True


def _build(name: str, options: dict[str, Any], size: tuple[int, int], **weights: Any) -> TimmBackbone:
    height, width = size
    try:
        return TimmBackbone(_timm().create_model(name, **options, **weights), (height, width))
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        if weights:
            raise
        if "dynamic_img_size" in str(error):
            raise ValueError(
                f"timm's {name} takes images of one size: set INPUT.SIZE_TEST to INPUT.SIZE_TRAIN, {height} x {width}"
            ) from error
        raise ValueError(
            f"timm's {name} gives no map of images of {height} x {width}, INPUT.SIZE_TRAIN ({_first_line(error)}): "
            "take a size or a model that fit each other"
        ) from error


def _pretrained(name: str, options: dict, path: str, size: tuple[int, int]) -> TimmBackbone:
    weights: dict[str, Any] = {"pretrained": True}
    if path:
        if not Path(path).is_file():
            raise ValueError(
                f"MODEL.BACKBONE.PRETRAIN_PATH {path} is not there: give a file of weights of timm's {name}"
            )
        # JAX's archives are read by the model itself.
        weights["pretrained_cfg_overlay"] = {"file": str(path), "source": "", "custom_load": path.endswith(".npz")}
    missing: list[str] = []
    try:
        with _recording(missing):
            backbone = _build(name, options, size, **weights)
    except Exception as error:  # torch's, safetensors', the hub's: whatever they say of a file or a connection
        what = f"MODEL.BACKBONE.PRETRAIN_PATH {path} holds" if path else "MODEL.BACKBONE.PRETRAIN True: timm has"
        raise ValueError(
            f"{what} no weights that can be loaded into timm's {name} ({_first_line(error)}): give a file of them as "
            "MODEL.BACKBONE.PRETRAIN_PATH, or set MODEL.BACKBONE.PRETRAIN False"
        ) from error
    needed = [key for key, parameter in backbone.model.named_parameters() if parameter.requires_grad]
    needed += [key for key, _ in backbone.model.named_buffers() if key.endswith(("running_mean", "running_var"))]
    if lacking := [key for key in needed if key in missing]:
        raise ValueError(
            f"the weights of MODEL.BACKBONE.PRETRAIN lack {len(lacking)} of the {len(needed)} tensors of timm's {name},"
            f" such as {lacking[0]}: give a file of this model as MODEL.BACKBONE.PRETRAIN_PATH"
        )
    return backbone


@contextmanager
def _recording(missing: list[str]) -> Iterator[None]:
    """Adds to ``missing`` what a file lacks of the model that timm loads it into, which timm itself only logs."""
    stock = nn.Module.load_state_dict

    def load_state_dict(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        result = stock(self, *arguments, **options)
        missing.extend(result.missing_keys)
        return result

    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.load_state_dict = stock  # type: ignore[method-assign]


def _check_pixels(cfg, model: Any) -> None:
    """Warn where images do not come as the pretrained weights saw them; fast-reid's pixels are from 0 to 255."""
    mean, std = ([round(255 * value, 3) for value in model.pretrained_cfg[key]] for key in ("mean", "std"))
    given = (*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD)
    if any(abs(value - wanted) > 0.5 for value, wanted in zip(given, (*mean, *std), strict=True)):
        logger.warning(
            f"timm's weights of {cfg.MODEL.BACKBONE.DEPTH} were trained with other pixels than MODEL.PIXEL_MEAN and "
            f"PIXEL_STD say: set MODEL.PIXEL_MEAN {mean} MODEL.PIXEL_STD {std}"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
