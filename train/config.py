"""What a training run was asked to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

# Here and not in checkpoint.py, which loads torch: the commands' help names them.
BEST_NAME = "retina_multitask_best.pth"
FINAL_NAME = "retina_multitask_final.pth"


@dataclass(frozen=True)
class TrainConfig:
    """The notebook's recipe by default. Travels in every checkpoint and in the run's ``config.json``."""

    data: str
    """Folder with train/, valid/ and test/, each with annotations.csv and images/."""
    recipe: Literal["notebook", "released-384", "released", "released-open"] = "notebook"
    """Where what was not asked for came from: see ``RECIPES``."""
    epochs: int = 12
    batch_size: int = 16
    """Photographs a micro-batch and device; a step sees batch_size x accumulate x devices."""
    image_size: int = 384
    framing: Literal["field", "squash"] = "field"
    backbone: str = "resnet50"
    weights: str = "imagenet"
    """``imagenet``, ``none``, or the path of a torchvision state_dict or of a checkpoint to go on from."""
    lr_backbone: float = 1e-4
    lr_heads: float = 1e-3
    dr_weight: float = 1.0
    me_weight: float = 1.0
    """Factors of the two cross-entropies in the loss."""
    class_weights: Literal["inverse", "none"] = "inverse"
    """``inverse``: the DR loss counts each grade by total / (grades x its count), scikit-learn's "balanced"."""
    dr_targets: Literal["hard", "ordinal"] = "hard"
    """``ordinal``: a grade's neighbours get a share of its target, so that near misses cost less (targets.py)."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """``adamw``: with ``loop.WEIGHT_DECAY``."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """``cosine``: a short warm-up, then half a cosine down to nothing, batch by batch."""
    ema: float = 0.0
    """Share of the running average of weights that a step keeps; the average is judged and kept. 0: the weights."""
    sampler: Literal["shuffle", "weighted"] = "shuffle"
    """``weighted`` draws with replacement so that each DR grade comes up equally often."""
    augment: Literal["notebook", "strong", "cameras"] = "notebook"
    accumulate: int = 1
    """Micro-batches whose gradients make one optimiser step."""
    unfreeze_epoch: int | None = None
    """Epoch (from 1) at which conv1, bn1 and layer1 open, the backbone going on at a tenth of its rate."""
    me_positive_from: int | None = None
    """ME grades from this one up count as risk, where annotations grade beyond 0/1 (IDRiD: 0/1/2)."""
    calibrate: Literal["none", "valid"] = "none"
    """``valid``: temperatures and screening thresholds fitted on valid to the best checkpoint (calibration.py)."""
    seed: int = 42
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cache: Literal["disk", "memory", "off"] = "disk"
    workers: int = 1

    @classmethod
    def of_recipe(cls, recipe: str, asked: dict[str, Any]) -> TrainConfig:
        """A recipe's values, where ``asked`` does not say otherwise; ``asked`` holds no None for "not asked"."""
        return cls(**{"recipe": recipe, **RECIPES[recipe], **asked})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)


_RELEASED: dict[str, Any] = {
    "epochs": 15,
    "image_size": 384,
    "lr_backbone": 2e-4,
    "class_weights": "none",
    "dr_targets": "ordinal",
    "optimizer": "adamw",
    "schedule": "cosine",
    "ema": 0.99,
    "augment": "cameras",
    "calibrate": "valid",
}
_SECOND: dict[str, Any] = {**_RELEASED, "epochs": 8, "image_size": 512, "lr_backbone": 1e-4, "lr_heads": 5e-4}
RECIPES: dict[str, dict[str, Any]] = {
    "notebook": {},
    "released-384": _RELEASED,
    "released": _SECOND,
    "released-open": {**_SECOND, "epochs": 6, "lr_backbone": 1e-3, "unfreeze_epoch": 1, "me_weight": 0.5},
}
"""What each recipe changes. The model that ships is the mean of two runs of ``released``, which go on from the best
checkpoint of one of ``released-384``, and one of ``released-open``, which goes on from one of these two,
averaged with a last run of ``released`` that goes on from that mean; docs/recipe.md has what each change gave."""
