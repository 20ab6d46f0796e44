"""The options of a training run, and the recipes that set their defaults."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from math import isfinite
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_type_hints

from ..runtime.annotations import MAX_ME_GRADE
from ..runtime.contract import MAX_IMAGE_SIZE, MIN_SIDE, Framing
from ..runtime.errors import UsageError

Targets = Literal["hard", "ordinal"]
Sampling = Literal["shuffle", "weighted"]
Augmentation = Literal["notebook", "cameras"]
Cache = Literal["disk", "memory", "off"]

# Here and not in checkpoint.py, because the commands' help names them and checkpoint.py imports torch.
BEST_NAME = "retina_multitask_best.pth"
FINAL_NAME = "retina_multitask_final.pth"
HOW_TO_GET_A_CHECKPOINT = (
    "Make one with  retina-train DATA, or from a model file:  "
    "python -m retina.export.recovery PHOTOGRAPHS --out recovered.pth"
)

BARE_FRAMING: Framing = "squash"
BARE_IMAGE_SIZE = 384
"""The preprocessing of the original notebook, whose checkpoints are bare state_dicts."""

SENSITIVITY = 0.90
"""Share of the photographs with the condition that screening should find: above the 0.80 that the British Diabetic
Association's standard requires of a screening test."""

ONE_PIXEL = 32
"""Side in pixels of the largest square whose last feature map is a single pixel, in every ResNet."""
BOUNDS: dict[str, tuple[int, int | None] | tuple[float, float | None]] = {
    "epochs": (1, None),
    "batch_size": (1, None),
    "image_size": (MIN_SIDE, MAX_IMAGE_SIZE),
    "lr_backbone": (0.0, None),
    "lr_heads": (0.0, None),
    "dr_weight": (0.0, None),
    "me_weight": (0.0, None),
    "ema": (0.0, 1.0),
    "accumulate": (1, 1_000_000),
    "unfreeze_epoch": (1, None),
    "me_positive_from": (1, MAX_ME_GRADE),
    "sensitivity": (0.5, 1.0),
    "seed": (0, 2**63 - 1),
    "workers": (0, None),
}
"""Least and greatest value of each number among the options. Those of type float stay below the greatest."""


@dataclass(frozen=True)
class TrainConfig:
    """The options of a run; the defaults are the notebook's recipe. ``BOUNDS`` has the range of each number.

    Stored in every checkpoint and in the run's ``config.json``.

    Raises:
        UsageError: a value of another type, out of its range, or not among the choices; a recipe's name without its
            values, which ``of_recipe`` adds; both heads weigh nothing, or batch-norm would see one value alone.
    """

    data: str | os.PathLike[str]
    """Kept as text. Folder with train/, valid/ and test/, each with annotations.csv and images/."""
    recipe: Literal["notebook", "released", "released-512", "released-open", "released-640"] = "notebook"
    """Which recipe gave the options that were not set explicitly: see ``RECIPES``."""
    epochs: int = 12
    batch_size: int = 16
    """Photographs per micro-batch and device; a step sees batch_size x accumulate x devices of them."""
    image_size: int = 384
    """Side in pixels of the square that the network sees."""
    framing: Framing = "field"
    """See ``Preprocessing.framing``."""
    backbone: str = "resnet50"
    """torchvision's name of a ResNet: see ``model.backbone_names``."""
    weights: str = "imagenet"
    """``imagenet``, the path of a torchvision state_dict or of a checkpoint to start from, or ``none``: random weights,
    of which no layer is frozen."""
    lr_backbone: float = 1e-4
    lr_heads: float = 1e-3
    """Learning rates."""
    dr_weight: float = 1.0
    me_weight: float = 1.0
    """Factors of the two cross-entropies in the loss."""
    class_weights: Literal["inverse", "none"] = "inverse"
    """``inverse``: the DR loss weights each grade by total / (grades x its count): see ``items.class_weights``."""
    dr_targets: Targets = "hard"
    """``ordinal``: a grade's neighbours get a share of its target, so that near misses cost less (targets.py)."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """``adamw``: with ``trainer.WEIGHT_DECAY``."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """``plateau``: halve the rates if the loss on valid has not fallen for more than two epochs. ``cosine``: a short
    warm-up, then half a cosine down to 0, updated every step."""
    ema: float = 0.0
    """Decay per step of the exponential moving average of the weights, which is then evaluated and kept instead of the
    weights themselves. 0: no average."""
    sampler: Sampling = "shuffle"
    """``weighted`` draws with replacement so that each DR grade is drawn equally often on average."""
    augment: Augmentation = "notebook"
    """See ``make_augment``."""
    accumulate: int = 1
    """Micro-batches whose gradients are summed for one optimiser step."""
    unfreeze_epoch: int | None = None
    """Epoch (from 1) from which conv1, bn1 and layer1 are trained too, the whole backbone then at a tenth of its rate;
    None: never."""
    me_positive_from: int | None = None
    """ME grades of this value and above count as risk, where annotations grade beyond 0/1 (IDRiD: 0/1/2)."""
    calibrate: Literal["none", "valid"] = "none"
    """``valid``: calibrate the best checkpoint and fit screening thresholds on valid (calibration.py)."""
    sensitivity: float = SENSITIVITY
    """Least sensitivity, on valid, of the referral thresholds that ``calibrate`` fits."""
    seed: int = 42
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of training; evaluation is always fp32. ``auto``: see ``device.bf16_is_faster``."""
    cache: Cache = "disk"
    """Where framed photographs are kept: see ``frames.look_through``."""
    workers: int | None = None
    """Processes that load training photographs, per device; 0: none but the training process. None: see
    ``loader.workers_for``."""

    def __new__(cls, *args: Any, **given: Any) -> TrainConfig:
        # Only here can options that were left out be told from equal ones that were asked for.
        given |= dict(zip((field.name for field in fields(cls)), args, strict=False))
        recipe = str(given.get("recipe", "notebook"))
        if absent := [name for name in RECIPES.get(recipe, {}) if name not in given]:
            raise UsageError(
                f"recipe {recipe}: expected its values too, found no {', '.join(absent)}. "
                f"TrainConfig.of_recipe({recipe!r}, {{...}}) adds them"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if not isinstance(self.data, (str, os.PathLike)):
            raise UsageError(f"data: expected a folder, found {self.data!r}")
        object.__setattr__(self, "data", os.fspath(self.data))
        for name, hint in get_type_hints(TrainConfig).items():
            value: Any = getattr(self, name)
            choices = [choice for choice in get_args(hint) if isinstance(choice, str)]
            if hint is str and not isinstance(value, str):
                raise UsageError(f"{name}: expected text, found {value!r}")
            if choices and value not in choices:
                raise UsageError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
            if name in BOUNDS and not (value is None and type(None) in get_args(hint)):
                low, high = BOUNDS[name]
                whole = isinstance(low, int)
                number = isinstance(value, Integral if whole else Real) and isfinite(value)
                if not (number and low <= value and (high is None or value < high or (whole and value == high))):
                    kind = "a whole number" if whole else "a finite number"
                    limit = "" if high is None else f" to {high}" if whole else f" to below {high}"
                    raise UsageError(f"{name}: expected {kind} from {low}{limit}, found {value!r}")
                value = int(value) if whole else float(value)
            elif isinstance(value, str):
                value = str(value)
            object.__setattr__(self, name, value)  # of plain type: NumPy's could not be read back from a checkpoint
        if not (self.dr_weight or self.me_weight):
            raise UsageError("dr_weight, me_weight: expected one of them above 0, or nothing is learned; found 0 and 0")
        if self.batch_size == 1 and self.image_size <= ONE_PIXEL:
            raise UsageError(
                "--batch-size 1: expected two photographs or more at --image-size 32, whose last feature map is one "
                "pixel: batch-norm has no variance of one value"
            )

    def notes(self, devices: int) -> list[str]:
        """What a user should know about these options on that many devices, as lines of text."""
        notes = []
        if self.sampler == "weighted" and self.class_weights == "inverse":
            notes.append(
                "Rare grades count twice: --sampler weighted draws them more often, and --class-weights inverse "
                "weights each draw more. For one of the two, add --class-weights none."
            )
        if self.unfreeze_epoch is not None and self.unfreeze_epoch > self.epochs:
            notes.append(
                f"--unfreeze-epoch {self.unfreeze_epoch} comes after the last of {self.epochs} epochs: no effect."
            )
        if self.calibrate == "none" and self.sensitivity != SENSITIVITY:
            notes.append(f"--sensitivity {self.sensitivity:g} without --calibrate valid: no effect.")
        if devices > 1:
            alone = self.batch_size * self.accumulate
            notes.append(
                f"{devices} devices: a step sees {alone * devices} photographs instead of {alone}. For as many steps "
                f"as on one device, divide --batch-size by {devices}."
            )
        return notes

    @classmethod
    def of_recipe(cls, recipe: str, asked: dict[str, Any]) -> TrainConfig:
        """A recipe's values, overridden by ``asked``, which holds only options that were set explicitly.

        Raises:
            UsageError: as the class, or there is no such recipe.
        """
        if recipe not in RECIPES:
            raise UsageError(f"recipe: expected one of {', '.join(RECIPES)}, found {recipe!r}")
        return cls(**{**RECIPES[recipe], **asked, "recipe": recipe})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The options that ``to_dict`` gave.

        Raises:
            UsageError: as the class, or ``values`` has an option that it does not know.
        """
        if unknown := values.keys() - {f.name for f in fields(cls)}:
            raise UsageError(f"expected options of this version, found {', '.join(sorted(unknown))}")
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)


_RELEASED: dict[str, Any] = {
    "epochs": 42,
    "image_size": 512,
    "lr_backbone": 2e-4,
    "class_weights": "none",
    "dr_targets": "ordinal",
    "optimizer": "adamw",
    "schedule": "cosine",
    "ema": 0.99,
    "augment": "cameras",
    "calibrate": "valid",
}
_BRANCH: dict[str, Any] = {**_RELEASED, "epochs": 13, "lr_backbone": 1e-4, "lr_heads": 5e-4}
RECIPES: dict[str, dict[str, Any]] = {
    "notebook": {},
    "released": _RELEASED,
    "released-512": _BRANCH,
    "released-open": {**_BRANCH, "epochs": 12, "lr_backbone": 1e-3, "unfreeze_epoch": 1, "me_weight": 0.5},
    "released-640": {**_BRANCH, "epochs": 19, "image_size": 640},
}
"""What each recipe changes. The last three start where a run of ``released`` ended; the model that ships is their mean
(docs/recipe.md)."""
