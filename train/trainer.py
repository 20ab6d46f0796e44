"""The network in training: forward, two losses, backward, step; the rates, and the evaluation of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ..runtime.contract import HEADS, Head
from ..runtime.errors import NonFiniteLossError
from ..runtime.weighted_metrics import UNLABELLED
from .augment import draw_seed
from .config import TrainConfig
from .items import Batch, EvalItems
from .metrics import epoch_scores
from .model import RetinaNet
from .run_progress import Progress
from .signals import StopRequest
from .targets import dr_targets
from .totals import Totals

UNFROZEN_RATE = 0.1
"""Factor on the backbone's learning rate once ``--unfreeze-epoch`` has unfrozen all of it."""
WEIGHT_DECAY = 0.02
"""Weight decay of ``--optimizer adamw``."""
WARM_UP = 0.05
"""Share of the training over which ``--schedule cosine`` raises the rates to their full value."""


@dataclass
class Trainer:
    """Everything that changes during training, and how it is saved and restored."""

    fabric: Fabric
    config: TrainConfig
    net: RetinaNet
    normalize: nn.Module
    dr_grades: tuple[int, ...]
    """Original grade of each DR index."""
    dr_weights: Tensor
    """(K,) float32: weight of each grade in the DR loss."""
    heads: tuple[Head, ...] = HEADS
    """Those that learn; the others help neither to choose the epoch nor to set the learning rates."""
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.net.to(self.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.normalize.to(self.fabric.device)
        self.dr_weights = self.dr_weights.to(self.fabric.device)
        self.dr_targets = dr_targets(self.config.dr_targets, self.dr_grades).to(self.fabric.device)
        # Not those of a head that does not learn: AdamW's weight decay would shrink them.
        heads = [parameter for head in self.heads for parameter in getattr(self.net, f"{head}_head").parameters()]
        groups = [
            {"params": list(self.net.backbone.parameters()), "lr": self.config.lr_backbone},
            {"params": heads, "lr": self.config.lr_heads},
        ]
        adam = (
            torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
            if self.config.optimizer == "adamw"
            else torch.optim.Adam(groups, fused=True)
        )
        self.optimizer: Any = self.fabric.setup_optimizers(adam)
        self.scheduler = ReduceLROnPlateau(adam, patience=2, factor=0.5)
        self.average: Any = None
        if self.config.ema:
            average = get_ema_multi_avg_fn(self.config.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.net, multi_avg_fn=average, use_buffers=True)
        # Random weights have learned nothing that freezing would keep.
        self._wrap(frozen=self.config.weights != "none")

    @property
    def eval_model(self) -> RetinaNet:
        """The network that is evaluated and saved: the running average if there is one."""
        return self.average.module if self.average is not None else self.net

    def _wrap(self, frozen: bool) -> None:
        # Wrapped again when layers are unfrozen, because DDP fixes at construction which gradients it exchanges.
        self.net.set_frozen(frozen)
        self.model = self.fabric.setup_module(self.net, move_to_device=False)

    def loss(self, batch: Batch, dr_total: Tensor, me_total: Tensor, totals: Tensor) -> Tensor:
        """One micro-batch's share of the step's loss: w1 x DR cross-entropy + w2 x ME cross-entropy, a scalar.

        The sums over the micro-batch are divided by the totals of the whole step, so that accumulated and sharded
        steps equal those of a larger batch. A photograph without a label for a head adds nothing to that head's loss.

        Args:
            batch: of B photographs.
            dr_total: sum of the DR weights over the whole step, above 0.
            me_total: number of ME labels in the whole step, above 0.
            totals: (7,), to which this batch's share of ``Totals`` is added.

        Raises:
            NonFiniteLossError: the loss is infinite or NaN.
        """
        dr_true = batch.dr_index.to(self.fabric.device)
        me_true = batch.me_label.to(self.fabric.device)
        dr_logits, me_logits = self.model(self._network_input(batch.image))  # (B, K), (B, 2)
        sums = self._sums(dr_logits, me_logits, dr_true, me_true)
        dr_loss, me_loss = sums["dr_loss"], sums["me_loss"]
        totals += torch.stack([sums[name] for name in Totals._fields]).detach()
        loss = self.config.dr_weight * dr_loss / dr_total + self.config.me_weight * me_loss / me_total
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"epoch {self.progress.epoch}: expected a finite loss, found DR {dr_loss.item():.4g} and "
                f"ME {me_loss.item():.4g} on the batch of {', '.join(batch.filenames)}. "
                "Start a new run with a lower --lr-backbone and --lr-heads, or with --precision fp32."
            )
        return loss

    def _sums(self, dr_logits: Tensor, me_logits: Tensor, dr_true: Tensor, me_true: Tensor) -> dict[str, Tensor]:
        """The parts of ``Totals`` of N photographs, scalars, from logits (N, K) and (N, 2) and labels (N,)."""
        # Cross-entropy with each grade's target distribution. As an index, UNLABELLED means the last grade: weight 0.
        dr_losses = F.cross_entropy(dr_logits.float(), self.dr_targets[dr_true], reduction="none")
        weights = self._weights(dr_true)
        return {
            "dr_loss": (weights * dr_losses).sum(),
            "dr_weights": weights.sum(),
            "dr_right": (dr_logits.argmax(1) == dr_true).sum(),
            "dr_labelled": (dr_true != UNLABELLED).sum(),
            "me_loss": F.cross_entropy(me_logits, me_true, reduction="sum", ignore_index=UNLABELLED),
            "me_right": (me_logits.argmax(1) == me_true).sum(),
            "me_labelled": (me_true != UNLABELLED).sum(),
        }

    def _weights(self, dr_true: Tensor) -> Tensor:
        """Weight of each photograph in the DR loss: (N,) float32, 0 without a grade."""
        return torch.where(dr_true == UNLABELLED, 0.0, self.dr_weights[dr_true])

    def _network_input(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 or float32 in [0, 255] -> normalised float32 on the device, in channels-last memory."""
        image = image.to(self.fabric.device, non_blocking=True)
        return self.normalize(image.float()).contiguous(memory_format=torch.channels_last)  # type: ignore[no-any-return]

    def train_epoch(
        self, loader: DataLoader[Batch], stop: StopRequest, show: Callable[[int, Totals], None], n_batches: int
    ) -> bool:
        """Train to the end of the current epoch of ``n_batches`` micro-batches per device, or to a requested stop.

        Args:
            loader: the epoch's remaining micro-batches.
            stop: checked after each step.
            show: called after each step with its number of micro-batches and the epoch's totals.
            n_batches: micro-batches of the whole epoch on this device.

        Returns:
            whether a stop was requested, the same on all devices.

        Raises:
            NonFiniteLossError: the loss is infinite or NaN.
        """
        fabric, progress = self.fabric, self.progress
        start = perf_counter()
        totals = torch.tensor(progress.totals, dtype=torch.float64, device="cpu")
        running = torch.zeros_like(totals, dtype=torch.float32, device=fabric.device)
        stopped = False
        self.model.train()
        for step in steps(loader, self.config.accumulate):
            self._set_rates(progress.batch / n_batches)
            dr_true = torch.cat([batch.dr_index for batch in step]).to(fabric.device)
            me_true = torch.cat([batch.me_label for batch in step]).to(fabric.device)
            counted = torch.stack([self._weights(dr_true).sum(), (me_true != UNLABELLED).sum()])
            counted = fabric.all_reduce(counted, reduce_op="sum")  # type: ignore[assignment]
            # Without a label the sum to divide is 0 as well.
            dr_total, me_total = torch.where(counted == 0, 1.0, counted)
            for i, batch in enumerate(step):
                self._seed_dropout(progress.batch + i)
                with fabric.no_backward_sync(self.model, enabled=i < len(step) - 1):
                    # DDP averages gradients over devices, but these losses are already shares of one sum.
                    fabric.backward(self.loss(batch, dr_total, me_total, running) * fabric.world_size)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.average is not None:
                self.average.update_parameters(self.net)
            progress.batch += len(step)
            totals += running.cpu().double()
            running.zero_()
            progress.totals = Totals(*totals.tolist())
            show(len(step), progress.totals)
            stopped = stop.agreed(fabric)
            if stopped:
                break
        self._agree_on_statistics()
        progress.seconds += perf_counter() - start
        return stopped

    def _set_rates(self, epoch_share: float) -> None:
        """Set the learning rates of ``--schedule cosine``.

        They are a pure function of the position in the run, so a resumed run has the same; ``epoch_share`` is the
        share of the current epoch that is done.
        """
        if self.config.schedule != "cosine":
            return
        done = (self.progress.epoch - 1 + epoch_share) / self.config.epochs
        factor = min(1.0, done / WARM_UP + 1e-3) * 0.5 * (1.0 + math.cos(math.pi * done))
        open_factor = UNFROZEN_RATE if self._is_unfrozen(started=True) else 1.0
        backbone, heads = self.optimizer.param_groups
        backbone["lr"] = self.config.lr_backbone * factor * open_factor
        heads["lr"] = self.config.lr_heads * factor

    def _seed_dropout(self, batch: int) -> None:
        # A pure function of the micro-batch's position in the run, as with the augmentation, so that it depends
        # neither on a resume nor on the device.
        position = batch * self.fabric.world_size + self.fabric.global_rank
        torch.manual_seed(draw_seed(self.config.seed + 1, self.progress.epoch, position))

    def _agree_on_statistics(self) -> None:
        """Average the batch-norm statistics that each device kept of its own share."""
        averaged = () if self.average is None else self.eval_model.buffers()
        for buffer in (*self.net.buffers(), *averaged):
            if buffer.is_floating_point():
                buffer.copy_(self.fabric.all_reduce(buffer, reduce_op="mean"))

    def summed_totals(self) -> Totals:
        """The epoch's totals over all devices."""
        if self.fabric.world_size == 1:
            return self.progress.totals
        totals = torch.tensor(self.progress.totals, device=self.fabric.device)
        return Totals(*self.fabric.all_reduce(totals, reduce_op="sum").tolist())  # type: ignore[union-attr]

    @torch.inference_mode()
    def predict(self, loader: Iterable[Batch], n: int) -> tuple[Tensor, Tensor]:
        """Logits (n, K) and (n, 2), float32 on the CPU, of a split in its order.

        Each photograph occurs once, however many devices share the split. Computed in float32 without autocast, because
        evaluation must see what the exported file will compute.

        Args:
            loader: this device's share of the split: see ``eval_loader``.
            n: number of photographs in the whole split.
        """
        net = self.eval_model.eval()
        logits = [torch.cat(net(self._network_input(batch.image)), dim=1).float() for batch in loader]
        width = len(self.dr_weights) + 2
        rows = torch.cat([*logits, torch.zeros(0, width, device=self.fabric.device)])
        world = self.fabric.world_size
        padding = torch.zeros(-(-n // world) - len(rows), width, device=self.fabric.device)
        shards = self.fabric.all_gather(torch.cat([rows, padding])).reshape(world, -1, width)  # type: ignore[union-attr]
        both = shards.transpose(0, 1).reshape(-1, width)[:n].cpu()  # device r has photographs r, r + world, ...
        return both[:, :-2], both[:, -2:]

    def validate(self, items: EvalItems, loader: Iterable[Batch]) -> dict[str, float]:
        """Figures on a split: ``loss``, ``dr_loss``, ``me_loss``, both accuracies, and those of ``epoch_scores``.

        Args:
            items: the split.
            loader: this device's share of it.
        """
        dr_logits, me_logits = self.predict(loader, len(items))
        predictions = items.predictions(dr_logits, me_logits)
        device = self.fabric.device
        dr_logits, me_logits = dr_logits.to(device), me_logits.to(device)
        dr_true = torch.from_numpy(predictions.dr_true).to(device)
        me_true = torch.from_numpy(predictions.me_true).to(device)
        sums = self._sums(dr_logits, me_logits, dr_true, me_true)
        figures = self._figures(Totals(**{name: value.item() for name, value in sums.items()}))
        return figures | epoch_scores(predictions, items.dr_grades, self.heads)

    def train_figures(self) -> dict[str, float]:
        """Losses and accuracies of the epoch's training photographs as they were trained on."""
        return self._figures(self.summed_totals())

    def _figures(self, totals: Totals) -> dict[str, float]:
        dr_weight = self.config.dr_weight if "dr" in self.heads else 0.0
        me_weight = self.config.me_weight if "me" in self.heads else 0.0
        return {"loss": totals.loss(dr_weight, me_weight), **totals.figures()}

    def unfreeze(self) -> None:
        """Unfreeze the whole backbone, whose rate falls to a tenth (``UNFROZEN_RATE``)."""
        self._wrap(frozen=False)
        self.optimizer.param_groups[0]["lr"] *= UNFROZEN_RATE

    def disk_needed(self) -> int:
        """Bytes on the disk that a run takes at most: its best checkpoint and its state, which is being replaced, or at
        its end the state, two checkpoints and their copies.
        """
        weights: int = sum(tensor.nbytes for tensor in self.net.state_dict().values())
        learned: int = sum(tensor.nbytes for group in self.optimizer.param_groups for tensor in group["params"])
        state = weights * (1 if self.average is None else 2) + 2 * learned  # Adam keeps two moments of each weight
        return max(weights + 2 * state, 4 * weights + state)

    def state(self) -> dict[str, Any]:
        """All that ``load_state`` restores: plain types and tensors, for ``torch.save``."""
        return {
            "net": self.net.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "progress": self.progress.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` gave; KeyError, TypeError, ValueError or RuntimeError if it is damaged."""
        self.progress = Progress.of(state["progress"])
        if self._is_unfrozen(started=self.progress.batch > 0):
            self._wrap(frozen=False)
        self.net.load_state_dict(state["net"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def _is_unfrozen(self, *, started: bool) -> bool:
        """Whether the backbone is unfrozen during the current epoch (``started``), or just before it begins."""
        opens = self.config.unfreeze_epoch
        return opens is not None and self.progress.epoch + started > opens


def steps(loader: Iterable[Batch], accumulate: int) -> Iterator[list[Batch]]:
    """Micro-batches in groups of ``accumulate``; the last group may be shorter."""
    micro_batches = iter(loader)
    while step := list(islice(micro_batches, accumulate)):
        yield step
