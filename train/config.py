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
    epochs: int = 12
    batch_size: int = 16
    """Photographs a micro-batch and device; a step sees batch_size x accumulate x devices."""
    image_size: int = 384
    framing: Literal["field", "squash"] = "field"
    backbone: str = "resnet50"
    weights: str = "imagenet"
    """``imagenet``, ``none`` or the path of a torchvision state_dict."""
    lr_backbone: float = 1e-4
    lr_heads: float = 1e-3
    dr_weight: float = 1.0
    me_weight: float = 1.0
    """Factors of the two cross-entropies in the loss."""
    class_weights: Literal["inverse", "none"] = "inverse"
    """``inverse``: the DR loss counts each grade by total / (grades x its count), scikit-learn's "balanced"."""
    sampler: Literal["shuffle", "weighted"] = "shuffle"
    """``weighted`` draws with replacement so that each DR grade comes up equally often."""
    augment: Literal["notebook", "strong"] = "notebook"
    accumulate: int = 1
    """Micro-batches whose gradients make one optimiser step."""
    unfreeze_epoch: int | None = None
    """Epoch (from 1) at which conv1, bn1 and layer1 open, the backbone going on at a tenth of its rate."""
    me_positive_from: int | None = None
    """ME grades from this one up count as risk, where annotations grade beyond 0/1 (IDRiD: 0/1/2)."""
    seed: int = 42
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cache: Literal["disk", "memory", "off"] = "disk"
    workers: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)
