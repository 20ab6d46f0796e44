"""The training loop: forward, two losses, backward, step, log; every epoch judged on valid and made resumable."""

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

from ..runtime.errors import ModelFileError, NonFiniteLossError
from .augment import draw_seed
from .checkpoint import save_tensors
from .config import TrainConfig
from .data import Batch, EpochPlan, EvalItems, TrainItems
from .loader import eval_loader, make_loader
from .metrics import Predictions, epoch_scores
from .model import RetinaNet, read_state_dict
from .stop import StopRequest
from .targets import dr_targets

UNFROZEN_RATE = 0.1
"""Factor on the backbone's learning rate once ``--unfreeze-epoch`` has opened all of it."""
WEIGHT_DECAY = 0.02
"""Of ``--optimizer adamw``."""
WARM_UP = 0.05
"""Share of the training over which ``--schedule cosine`` rises to the full rates."""
_RESUME_KIND = "retina-edge resume state"
Used = TypeVar("Used")


@dataclass
class Progress:
    """Where a run stands: all that ``--resume`` needs beside weights and optimiser state."""

    epoch: int = 1
    """The epoch under way, from 1."""
    batch: int = 0
    """Micro-batches of it that are done."""
    totals: list[float] = field(default_factory=lambda: [0.0] * 6)
    """Of the epoch under way: summed weighted DR loss, DR weights, summed ME loss, photographs, right DR, right ME."""
    seconds: float = 0.0
    """Training time of the epoch under way."""
    best_score: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def place(self, epochs: int) -> str:
        """How far it is in a run of so many epochs, in words."""
        if self.epoch > epochs:
            return "the end of its last epoch"
        where = f"batch {self.batch}" if self.batch else "the start"
        return f"{where} of epoch {self.epoch} of {epochs}"


@dataclass
class Trainer:
    """Everything that changes while training, with its way to disk and back."""

    fabric: Fabric
    config: TrainConfig
    net: RetinaNet
    normalize: nn.Module
    dr_grades: tuple[int, ...]
    """Original grade of each DR index."""
    dr_weights: Tensor
    """(K,) float32: what each grade counts in the DR loss."""
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
        self._wrap(frozen=True)

    @property
    def judged(self) -> RetinaNet:
        """The network that is evaluated and kept: the running average where there is one."""
        return self.average.module if self.average is not None else self.net

    def _wrap(self, frozen: bool) -> None:
        # Wrapped anew when the frozen layers open: DDP fixes at construction which gradients it exchanges.
        self.net.set_frozen(frozen)
        self.model = self.fabric.setup_module(self.net, move_to_device=False)

    def loss(self, batch: Batch, dr_total: Tensor, n_total: Tensor, totals: Tensor) -> Tensor:
        """One micro-batch's share of the step's loss: w1 x DR cross-entropy + w2 x ME cross-entropy.

        Sums over the micro-batch divided by the totals of the whole step, so that accumulated and sharded steps
        equal the larger batch's. Adds what the epoch's log needs to ``totals``.
        """
        dr_true = batch.dr_index.to(self.fabric.device)
        me_true = batch.me_label.to(self.fabric.device)
        dr_logits, me_logits = self.model(self._network_input(batch.image))  # (B, K), (B, 2)
        dr_loss = (self.dr_weights[dr_true] * self._dr_losses(dr_logits, dr_true)).sum()
        me_loss = F.cross_entropy(me_logits, me_true, reduction="sum")
        with torch.no_grad():
            totals[0] += dr_loss
            totals[1] += self.dr_weights[dr_true].sum()
            totals[2] += me_loss
            totals[3] += len(dr_true)
            totals[4] += (dr_logits.argmax(1) == dr_true).sum()
            totals[5] += (me_logits.argmax(1) == me_true).sum()
        loss = self.config.dr_weight * dr_loss / dr_total + self.config.me_weight * me_loss / n_total
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"epoch {self.progress.epoch}: expected a finite loss, found DR {dr_loss.item():.4g} and "
                f"ME {me_loss.item():.4g} on the batch of {', '.join(batch.filenames)}. "
                "Start a new run with a lower --lr-backbone and --lr-heads, or with --precision fp32."
            )
        return loss

    def _dr_losses(self, dr_logits: Tensor, dr_true: Tensor) -> Tensor:
        """(N,) cross-entropy of each photograph against its grade's target distribution, grades not weighted."""
        return F.cross_entropy(dr_logits.float(), self.dr_targets[dr_true], reduction="none")

    def _network_input(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 255], uint8 or float32 -> normalised float32 on the device, channels last."""
        image = image.to(self.fabric.device, non_blocking=True)
        return self.normalize(image.float()).contiguous(memory_format=torch.channels_last)  # type: ignore[no-any-return]

    def train_epoch(
        self, loader: DataLoader[Batch], stop: StopRequest, show: Callable[[int, list[float]], None], n_batches: int
    ) -> None:
        """Finish the epoch of ``n_batches`` micro-batches that is under way, or stop at a step's end."""
        fabric, progress = self.fabric, self.progress
        start = perf_counter()
        totals = torch.tensor(progress.totals, dtype=torch.float64, device="cpu")
        running = torch.zeros(6, device=fabric.device)
        self.model.train()
        for step in steps(loader, self.config.accumulate):
            self._set_rates(progress.batch / n_batches)
            labels = torch.cat([batch.dr_index for batch in step]).to(fabric.device)
            counted = torch.stack(
                [self.dr_weights[labels].sum(), torch.tensor(float(len(labels)), device=fabric.device)]
            )
            dr_total, n_total = fabric.all_reduce(counted, reduce_op="sum")
            for i, batch in enumerate(step):
                self._seed_dropout(progress.batch + i)
                with fabric.no_backward_sync(self.model, enabled=i < len(step) - 1):
                    # DDP averages gradients over devices; our shares are already parts of one sum.
                    fabric.backward(self.loss(batch, dr_total, n_total, running) * fabric.world_size)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.average is not None:
                self.average.update_parameters(self.net)
            progress.batch += len(step)
            totals += running.cpu().double()
            running.zero_()
            progress.totals = totals.tolist()
            show(len(step), progress.totals)
            if stop.agreed(fabric):
                break
        self._agree_on_statistics()
        progress.seconds += perf_counter() - start

    def _set_rates(self, epoch_share: float) -> None:
        """Set the learning rates of ``--schedule cosine``: a pure function of the place in the run, so that a resume
        finds them again.
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
        # A pure function of the micro-batch's place in the run, as the augmentation is of the draw's: what was
        # drawn before a resume, or on which device, changes nothing.
        position = batch * self.fabric.world_size + self.fabric.global_rank
        torch.manual_seed(draw_seed(self.config.seed + 1, self.progress.epoch, position))

    def _agree_on_statistics(self) -> None:
        """Average the batch-norm statistics that each device kept of its own share."""
        averaged = () if self.average is None else self.judged.buffers()
        for buffer in (*self.net.buffers(), *averaged):
            if buffer.is_floating_point():
                buffer.copy_(self.fabric.all_reduce(buffer, reduce_op="mean"))

    def summed_totals(self) -> list[float]:
        """The epoch's totals over all devices."""
        if self.fabric.world_size == 1:
            return self.progress.totals
        totals = torch.tensor(self.progress.totals, device=self.fabric.device)
        return self.fabric.all_reduce(totals, reduce_op="sum").tolist()  # type: ignore[union-attr]

    @torch.inference_mode()
    def predict(self, loader: DataLoader[Batch], n: int) -> tuple[Tensor, Tensor]:
        """Logits (n, K) and (n, 2) of a split in its order, each photograph once however many devices share it.

        In float32: autocast is for training, and evaluation must see what the exported file will compute.
        """
        net = self.judged.eval()
        logits = [torch.cat(net(self._network_input(batch.image)), dim=1).float() for batch in loader]
        width = len(self.dr_weights) + 2
        rows = torch.cat([*logits, torch.zeros(0, width, device=self.fabric.device)])
        world = self.fabric.world_size
        padding = torch.zeros(-(-n // world) - len(rows), width, device=self.fabric.device)
        shards = self.fabric.all_gather(torch.cat([rows, padding])).reshape(world, -1, width)  # type: ignore[union-attr]
        both = shards.transpose(0, 1).reshape(-1, width)[:n].cpu()  # device r held photographs r, r + world, ...
        return both[:, :-2], both[:, -2:]

    def judge(self, items: EvalItems, loader: DataLoader[Batch]) -> dict[str, float]:
        """Losses and scores on a split."""
        dr_logits, me_logits = self.predict(loader, len(items))
        predictions = as_predictions(items, dr_logits, me_logits)
        device = self.fabric.device
        dr_logits, me_logits = dr_logits.to(device), me_logits.to(device)
        dr_true = torch.from_numpy(predictions.dr_true).to(device)
        me_true = torch.from_numpy(predictions.me_true).to(device)
        weights = self.dr_weights[dr_true]
        dr_loss = ((weights * self._dr_losses(dr_logits, dr_true)).sum() / weights.sum()).item()
        me_loss = F.cross_entropy(me_logits, me_true).item()
        loss = self.config.dr_weight * dr_loss + self.config.me_weight * me_loss
        return {"loss": loss, "dr_loss": dr_loss, "me_loss": me_loss, **epoch_scores(predictions, items.dr_grades)}

    def unfreeze(self) -> None:
        """Open the whole backbone, which goes on at a tenth of its rate."""
        self._wrap(frozen=False)
        self.optimizer.param_groups[0]["lr"] *= UNFROZEN_RATE

    def state(self) -> dict[str, Any]:
        return {
            "kind": _RESUME_KIND,
            "net": self.net.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "progress": vars(self.progress),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        if self._is_open(self.progress.epoch, started=self.progress.batch > 0):
            self._wrap(frozen=False)
        self.net.load_state_dict(state["net"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def _is_open(self, epoch: int, *, started: bool) -> bool:
        """Whether ``unfreeze`` has happened once ``epoch`` is under way (``started``), or as it begins."""
        opens = self.config.unfreeze_epoch
        return opens is not None and (epoch > opens or (epoch == opens and started))


def fit(
    trainer: Trainer,
    train_items: TrainItems,
    valid_items: EvalItems,
    resume_file: Path,
    on_best: Callable[[dict[str, float]], None],
    on_epoch: Callable[[list[dict[str, float]]], None],
    show_epoch: Callable[[int, int], Callable[[int, list[float]], None]],
) -> bool:
    """Train to the end of the last epoch.

    Args:
        trainer: fresh, or with a resume state loaded.
        train_items: with their sampler's grades.
        valid_items: what each epoch is judged on.
        resume_file: written at the start, after each epoch and at a stop.
        on_best: called with the epoch's row when its score is the best so far.
        on_epoch: called with the history after each epoch.
        show_epoch: makes the epoch's progress callback from its number and its count of micro-batches.

    Returns:
        True at the end; False where SIGINT or SIGTERM asked to stop, with everything saved.

    Raises:
        NonFiniteLossError: naming the batch's files.
        UsageError: too few photographs for the batch size and the number of devices.
    """
    config, fabric, progress = trainer.config, trainer.fabric, trainer.progress
    plan = EpochPlan(
        train_items.dr_index, config.batch_size, config.sampler, config.seed, fabric.global_rank, fabric.world_size
    )
    if progress.epoch == 1 and progress.batch == 0:
        save_resume(trainer, resume_file)  # a run killed in its first epoch can be resumed as well
    train_loader = make_loader(train_items, config.workers, fabric, batch_sampler=plan)
    valid_loader = eval_loader(valid_items, config, fabric)

    with StopRequest() as stop:
        while progress.epoch <= config.epochs:
            if progress.batch == 0 and progress.epoch == config.unfreeze_epoch:
                trainer.unfreeze()
            plan.epoch, plan.start = progress.epoch, progress.batch
            trainer.train_epoch(train_loader, stop, show_epoch(progress.epoch, len(plan)), plan.n_batches)
            if stop.requested:
                # Each device goes on from an equal share of the sum.
                progress.totals = [total / fabric.world_size for total in trainer.summed_totals()]
                save_resume(trainer, resume_file)
                return False

            row = {"epoch": progress.epoch, **_train_row(trainer)}
            valid = trainer.judge(valid_items, valid_loader)
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
            progress.batch, progress.totals, progress.seconds = 0, [0.0] * 6, 0.0
            save_resume(trainer, resume_file)
            on_epoch(progress.history)
            if stop.agreed(fabric):  # while valid was judged
                return False
    return True


def _train_row(trainer: Trainer) -> dict[str, float]:
    dr_sum, dr_weights, me_sum, n, dr_right, me_right = trainer.summed_totals()
    dr_loss, me_loss = dr_sum / dr_weights, me_sum / n
    return {
        "train_loss": trainer.config.dr_weight * dr_loss + trainer.config.me_weight * me_loss,
        "train_dr_loss": dr_loss,
        "train_me_loss": me_loss,
        "train_dr_accuracy": dr_right / n,
        "train_me_accuracy": me_right / n,
    }


def save_resume(trainer: Trainer, file: Path) -> None:
    if trainer.fabric.is_global_zero:
        save_tensors(file, trainer.state())


def load_resume(trainer: Trainer, file: Path) -> None:
    """Raises ModelFileError where the file is no resume state."""
    _with_resume(file, trainer.load_state)


def saved_progress(file: Path) -> Progress:
    """Where a run goes on; ModelFileError where the file is no resume state."""
    return _with_resume(file, lambda state: Progress(**state["progress"]))


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
    return Predictions.of(items.photos, items.dr_index, dr_logits.softmax(1).numpy(), me_logits.softmax(1).numpy())
