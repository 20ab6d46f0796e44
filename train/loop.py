"""The training loop: forward, two losses, backward, step, log; every epoch is evaluated on valid and resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ..runtime.contract import HEADS, Head
from ..runtime.errors import ModelFileError, NonFiniteLossError
from ..runtime.yardsticks import UNLABELLED
from .augment import draw_seed
from .checkpoint import save_tensors
from .config import TrainConfig
from .items import Batch, EpochPlan, EvalItems, TrainItems
from .loader import eval_loader, train_loader
from .metrics import Predictions, epoch_scores
from .model import RetinaNet, read_state_dict
from .stop import StopRequest
from .targets import dr_targets
from .totals import Totals

UNFROZEN_RATE = 0.1
"""Factor on the backbone's learning rate once ``--unfreeze-epoch`` has unfrozen all of it."""
WEIGHT_DECAY = 0.02
"""Weight decay of ``--optimizer adamw``."""
WARM_UP = 0.05
"""Share of the training over which ``--schedule cosine`` raises the rates to their full value."""
_RESUME_KIND = "retina-edge resume state 2"
Used = TypeVar("Used")


@dataclass
class Progress:
    """How far a run is: all that ``--resume`` needs besides the weights and the states of optimiser and scheduler."""

    epoch: int = 1
    """The current epoch, from 1."""
    batch: int = 0
    """Number of its micro-batches that are done, on each device."""
    totals: Totals = field(default_factory=Totals)
    """Of the current epoch so far."""
    seconds: float = 0.0
    """Training time of the current epoch."""
    best_score: float = -1.0
    """Highest ``score`` of ``epoch_scores`` on valid so far."""
    best_epoch: int = 0
    """Its epoch; 0 before the first."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per finished epoch, with the columns of ``history.csv``."""

    def place(self, epochs: int) -> str:
        """How far a run of this many epochs is, in words."""
        if self.epoch > epochs:
            return "the end of its last epoch"
        where = f"batch {self.batch}" if self.batch else "the start"
        return f"{where} of epoch {self.epoch} of {epochs}"


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
        heads = [*self.net.dr_head.parameters(), *self.net.me_head.parameters()]
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
        # Random weights have learnt nothing that freezing would keep.
        self._wrap(frozen=self.config.weights != "none")

    @property
    def judged(self) -> RetinaNet:
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
        open_factor = UNFROZEN_RATE if self._is_open(self.progress.epoch, started=True) else 1.0
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
        averaged = () if self.average is None else self.judged.buffers()
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
        net = self.judged.eval()
        logits = [torch.cat(net(self._network_input(batch.image)), dim=1).float() for batch in loader]
        width = len(self.dr_weights) + 2
        rows = torch.cat([*logits, torch.zeros(0, width, device=self.fabric.device)])
        world = self.fabric.world_size
        padding = torch.zeros(-(-n // world) - len(rows), width, device=self.fabric.device)
        shards = self.fabric.all_gather(torch.cat([rows, padding])).reshape(world, -1, width)  # type: ignore[union-attr]
        both = shards.transpose(0, 1).reshape(-1, width)[:n].cpu()  # device r has photographs r, r + world, ...
        return both[:, :-2], both[:, -2:]

    def judge(self, items: EvalItems, loader: DataLoader[Batch]) -> dict[str, float]:
        """Losses and ``epoch_scores`` on a split."""
        dr_logits, me_logits = self.predict(loader, len(items))
        predictions = as_predictions(items, dr_logits, me_logits)
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

    def state(self) -> dict[str, Any]:
        return {
            "kind": _RESUME_KIND,
            "net": self.net.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "progress": {**vars(self.progress), "totals": list(self.progress.totals)},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.progress = _progress_in(state)
        if self._is_open(self.progress.epoch, started=self.progress.batch > 0):
            self._wrap(frozen=False)
        self.net.load_state_dict(state["net"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def _is_open(self, epoch: int, *, started: bool) -> bool:
        """Whether the backbone is unfrozen during ``epoch`` (``started``), or just before it begins."""
        opens = self.config.unfreeze_epoch
        return opens is not None and (epoch > opens or (epoch == opens and started))


def fit(
    trainer: Trainer,
    train_items: TrainItems,
    valid_items: EvalItems,
    resume_file: Path,
    on_best: Callable[[dict[str, float]], None],
    on_epoch: Callable[[list[dict[str, float]]], None],
    show_epoch: Callable[[int, int], Callable[[int, Totals], None]],
) -> bool:
    """Train to the end of the last epoch.

    Args:
        trainer: new, or with a resume state loaded.
        train_items: the training photographs.
        valid_items: the photographs that each epoch is evaluated on.
        resume_file: written at the start, after each epoch and at a stop.
        on_best: called with the epoch's row of history if its score is the best so far.
        on_epoch: called with the history after each epoch.
        show_epoch: makes an epoch's progress callback from its number and its number of remaining micro-batches.

    Returns:
        True at the end; False if stopped by SIGINT or SIGTERM, with everything saved.

    Raises:
        NonFiniteLossError: a loss is infinite or NaN; in training, the message names the batch's files.
        UsageError: too few photographs for the batch size and the number of devices.
        OutputError: ``resume_file`` cannot be written.
    """
    config, fabric, progress = trainer.config, trainer.fabric, trainer.progress
    plan = EpochPlan(
        train_items.dr_index, config.batch_size, config.sampler, config.seed, fabric.global_rank, fabric.world_size
    )
    if progress.epoch == 1 and progress.batch == 0:
        save_resume(trainer, resume_file)  # so that a run killed in its first epoch can be resumed too
    train_batches = train_loader(train_items, plan, config, fabric)
    valid_batches = eval_loader(valid_items, config, fabric)

    with StopRequest() as stop:
        while progress.epoch <= config.epochs:
            if progress.batch == 0 and progress.epoch == config.unfreeze_epoch:
                trainer.unfreeze()
            plan.epoch, plan.start = progress.epoch, progress.batch
            if trainer.train_epoch(train_batches, stop, show_epoch(progress.epoch, len(plan)), plan.n_batches):
                # When resumed, each device continues from an equal share of the sum.
                progress.totals = Totals(*(total / fabric.world_size for total in trainer.summed_totals()))
                save_resume(trainer, resume_file)
                return False

            row: dict[str, float] = {"epoch": progress.epoch}
            row |= {f"train_{name}": value for name, value in trainer.train_figures().items()}
            valid = trainer.judge(valid_items, valid_batches)
            if not math.isfinite(valid["loss"]):
                raise NonFiniteLossError(
                    f"epoch {progress.epoch}: expected a finite loss on valid, found DR {valid['dr_loss']:.4g} and ME "
                    f"{valid['me_loss']:.4g}. Start a new run with a lower --lr-backbone and --lr-heads."
                )
            row |= {f"valid_{name}": value for name, value in valid.items()}
            backbone, heads = trainer.optimizer.param_groups
            row |= {"lr_backbone": backbone["lr"], "lr_heads": heads["lr"]}
            row["seconds"] = progress.seconds
            if config.schedule == "plateau":
                trainer.scheduler.step(valid["loss"])
            progress.history.append(row)
            if valid["score"] > progress.best_score:
                progress.best_score, progress.best_epoch = valid["score"], progress.epoch
                on_best(row)
            progress.epoch += 1
            progress.batch, progress.totals, progress.seconds = 0, Totals(), 0.0
            save_resume(trainer, resume_file)
            on_epoch(progress.history)
            if stop.agreed(fabric):  # requested during the evaluation on valid
                return False
    return True


def save_resume(trainer: Trainer, file: Path) -> None:
    if trainer.fabric.is_global_zero:
        save_tensors(file, trainer.state())


def load_resume(trainer: Trainer, file: Path) -> None:
    """Restore a trainer from a resume file.

    Raises:
        ModelFileError: the file is damaged or not a resume state.
    """
    _with_resume(file, trainer.load_state)


def saved_progress(file: Path) -> Progress:
    """The progress in a resume file.

    Raises:
        ModelFileError: the file is damaged or not a resume state.
    """
    return _with_resume(file, _progress_in)


def _progress_in(state: dict[str, Any]) -> Progress:
    return Progress(**{**state["progress"], "totals": Totals(*state["progress"]["totals"])})


def _with_resume(file: Path, use: Callable[[dict[str, Any]], Used]) -> Used:
    state = read_state_dict(file)
    if state.get("kind") != _RESUME_KIND:
        raise ModelFileError(f"{file}: expected a {_RESUME_KIND}, found another file. Start a new run.")
    try:
        return use(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as err:
        raise ModelFileError(
            f"{file}: expected a whole {_RESUME_KIND}, found damage: {err}. Start a new run."
        ) from None


def steps(loader: Iterable[Batch], accumulate: int) -> Iterator[list[Batch]]:
    """Micro-batches in groups of ``accumulate``; the last group may be shorter."""
    micro_batches = iter(loader)
    while step := list(islice(micro_batches, accumulate)):
        yield step


def as_predictions(items: EvalItems, dr_logits: Tensor, me_logits: Tensor) -> Predictions:
    """Predictions from logits (N, K) and (N, 2) on the CPU, in the order of ``items``."""
    return Predictions.of(items.photos, items.dr_grades, dr_logits.softmax(1).numpy(), me_logits.softmax(1).numpy())
