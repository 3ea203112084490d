"""One optimizer step: micro-batches -> gradient sums -> mean over the window's tokens -> clip -> AdamW. Knows no epoch.

    examples -> make_batch -> draft's hidden rows (M, D) ┐
                           -> teacher.teach      p (M, S) ┴-> ChunkedLoss -> Sums and the gradient of their loss

Every micro-batch gives sums over its supervised tokens; the window divides once, by all tokens of its micro-batches, so
accumulating equals one large batch. λ of `lk` is made of what was accepted in the step before, so that all parts of a
step have one, and none needs another pass for it; in the first step each micro-batch has its own. A micro-batch whose
loss or gradient cannot be used leaves no trace but its name. Dropout is drawn from (seed, step, micro-batch) alone.
What does not fit into memory is worked on in parts, whose sums are added. The update of a window of one micro-batch is
evaluated together with its gradient, and taken back where the gradient cannot be used; while the device works on it,
the arrays of the next one are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..config import Training
from ..data.records import Sampler
from ..errors import BatchesUnusable
from ..models import adapter as lora
from ..runtime import memory
from ..runtime.rng import get_state, set_state, unchanged
from .batches import Batch, make_batch
from .chunked_loss import ChunkedLoss
from .dataset.batch_plan import Window
from .dataset.examples import Example
from .forward import PIECE_BYTES, Forward, positions_at_a_time
from .losses import Sums
from .memory.fitting import Fit
from .memory.recompute import set_recompute
from .peak_rate import rate_by_width
from .teacher import Teacher, TeacherParts

_GREEDY = Sampler(temperature=0.0, top_p=1.0, min_p=0.0, top_k=0, seed=0)
State = dict[str, mx.array]
ACCEPTED = "accepted"  # of a state
MOST_WARMUP = 0.2  # of a training's steps, however many the configuration asks for


@dataclass(frozen=True, slots=True)
class SkippedBatch:
    """A micro-batch that was not trained on: the ids of its records, and why."""

    record_ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a window did: sums over the supervised tokens trained on, the mean gradient's norm, and what was skipped.

    `skipped_in_row` counts the micro-batches skipped one after the other up to the end of the window.
    """

    loss: float
    acceptance: float
    tokens: int
    gradient_norm: float
    learning_rate: float
    skipped: tuple[SkippedBatch, ...]
    skipped_in_row: int


@dataclass
class Learner:
    """The draft's adapter, what it learns from, and its optimizer.

    Attributes:
        draft: carries the adapter; nothing else in it is trained.
        forward: the draft's logits at chosen positions.
        teacher: gives the teacher probabilities of any batch.
        width: tokens that target and draft share.
        settings: of the training.
        steps: of the whole training, at which the learning rate ends; the loop lowers it for a time limit.
        piece_bytes: of draft logits in float32 that exist at a time.
        piece: positions whose logits exist at a time.
        slower: a factor on the scheduled learning rate.
        peak: learning rate of the schedule; where the settings leave it to a test, the rule by width's until then.
        accepted: mean overlap Σ min(p, q) in the last step (`losses.Terms`); None before the first one.
    """

    draft: nn.Module
    forward: Forward
    teacher: Teacher
    width: int
    settings: Training
    steps: int
    piece_bytes: int = PIECE_BYTES

    def __post_init__(self) -> None:
        given = self.settings.learning_rate
        self.peak = given if given != "auto" else self._rate_by_width()
        self.begin_anew(1.0)
        self.piece = positions_at_a_time(self.width, self.piece_bytes)
        self.fit = Fit()
        self._prepared: Batch | None = None

    @property
    def fit(self) -> Fit:
        """How micro-batches are worked on so that they fit into memory."""
        return self._fit

    @fit.setter
    def fit(self, fit: Fit) -> None:
        self._fit = fit
        set_recompute(self.draft, fit.recompute)

    def _rate_by_width(self) -> float:
        return rate_by_width(lora.input_width(self.draft), lora.carried_shape(self.draft).scale)

    def begin_anew(self, slower: float) -> None:
        """Forget all moments and what was accepted, and go on with the scheduled learning rate times `slower`."""
        settings, self.slower = self.settings, slower
        self.accepted: float | None = None
        self.optimizer = optim.AdamW(self.peak, weight_decay=settings.weight_decay, bias_correction=True)
        self.optimizer.init(self.draft.trainable_parameters())
        mx.eval(self.optimizer.state)  # so that the moments count when the memory that is taken is measured

    def state(self) -> State:
        """Adapter, optimizer, random state, acceptance: with the position in the plan, all that a resumed run needs."""
        adapter = {f"adapter.{name}": value for name, value in lora.adapter_parameters(self.draft).items()}
        optimizer = {f"optimizer.{name}": value for name, value in tree_flatten(self.optimizer.state)}
        accepted = {} if self.accepted is None else {ACCEPTED: mx.array(self.accepted)}
        return {**adapter, **optimizer, "random": get_state(), **accepted}

    def restore(self, state: State) -> None:
        """Go back to what `state` returned; what else is in it is passed over."""
        lora.load_parameters(self.draft, under("adapter.", state))
        self.optimizer.state = tree_unflatten(list(under("optimizer.", state).items()))
        set_state(state["random"])
        self.accepted = float(state[ACCEPTED].item()) if ACCEPTED in state else None

    def train(
        self,
        window: Window,
        step: int,
        skipped_in_row: int,
        check: Callable[[], None],
        following: Window | None = None,
    ) -> StepResult:
        """Make one optimizer step; whatever is raised, it has changed nothing then.

        Args:
            window: the micro-batches.
            step: its number in the training, from 0.
            skipped_in_row: micro-batches skipped one after the other right before.
            check: called before each micro-batch; may raise to give up the step.
            following: what the next step is made of, where that is known.

        Raises:
            BatchesUnusable: too many micro-batches in a row could not be used.
            RuntimeError, MemoryError: MLX's own, where it is out of memory.
        """
        self.draft.train()
        rate = self.slower * learning_rate(step, self.steps, self.peak, self.settings.warmup_steps)
        gradients: Any = None
        loss, acceptance, overlap, tokens, norm = 0.0, 0.0, 0.0, 0, 0.0
        skipped: list[SkippedBatch] = []
        with self._restored_on_error() as before:
            for number, examples in enumerate(window.micro_batches):
                # 1. Parts that fit into memory, and a seed that depends on nothing but where the micro-batch stands.
                check()
                mx.random.seed(_mixed(self.settings.seed, step, number))
                parts, too_long = self.fit.parts(examples)
                skipped += [_skipped_for_length(example) for example in too_long]
                if not parts:
                    continue
                # 2. Sums and gradient; a window of one part makes its update with them.
                at_once = len(window.micro_batches) == len(parts) == 1
                result = self._at_once(parts[0], rate, following, before) if at_once else self._accumulated(parts)
                if isinstance(result, SkippedBatch):
                    skipped_in_row += 1
                    skipped.append(result)
                    self._give_up_after(skipped_in_row, result, step)
                    continue
                # 3. They are added to those of the window.
                skipped_in_row = 0
                sums, own = result
                loss, acceptance, tokens = loss + sums.loss, acceptance + sums.acceptance, tokens + int(sums.tokens)
                overlap += sums.overlap
                if at_once:
                    norm = own
                else:
                    gradients = own if gradients is None else tree_map(mx.add, gradients, own)
            # 4. One update with the mean over all tokens of the window.
            if gradients is not None:
                updated = self._update(gradients, tokens, rate)
                mx.eval(self.draft.trainable_parameters(), self.optimizer.state)
                mx.synchronize()
                norm = float(updated.item())
            if tokens:
                self.accepted = overlap / tokens
        return StepResult(loss, acceptance, tokens, norm, rate, tuple(skipped), skipped_in_row)

    @contextmanager
    def _restored_on_error(self) -> Iterator[State]:
        """Gives the state as it is, which comes back where the block raises: half a step may lie in the adapter."""
        before = self.state()
        try:
            yield before
        except BaseException:
            self.restore(before)
            raise

    def _at_once(
        self, examples: Sequence[Example], rate: float, following: Window | None, before: State
    ) -> tuple[Sums, float] | SkippedBatch:
        """A whole step in one evaluation: its sums as numbers and the mean gradient's norm, or why it was skipped."""
        # 1. Gradient and update are enqueued together.
        arrays, gradients = self._enqueued(examples)
        norm = self._update(gradients, mx.maximum(arrays.tokens, 1.0), rate)
        everything = arrays, norm, self.draft.trainable_parameters(), self.optimizer.state
        mx.async_eval(everything)
        # 2. While the device works, the arrays of the next window are made, if it is one part too.
        if following is not None and len(following.micro_batches) == 1:
            parts, _ = self.fit.parts(following.micro_batches[0])
            self._prepared = make_batch(parts[0]) if len(parts) == 1 else None
        mx.eval(everything)
        mx.synchronize()  # only now does a GPU say that it is out of memory
        # 3. An update that must not be is taken back.
        sums = Sums(*(value.item() for value in arrays))
        skipped = self._unusable(examples, sums, norm.item())
        if skipped is not None:
            self.restore(before)
        return skipped or (sums, norm.item())

    def _accumulated(self, parts: Sequence[Sequence[Example]]) -> tuple[Sums, Any] | SkippedBatch:
        """Sums as Python numbers and the gradient of the loss sum, or why they cannot be used.

        Sums of parts are those of the whole, but that dropout is drawn part by part.
        """
        sums, gradients = [], None
        for part in parts:
            of_part, own = self._evaluated_with_gradient(part)
            sums.append(of_part)
            gradients = own if gradients is None else tree_map(mx.add, gradients, own)
        norm = mx.sqrt(sum(mx.sum(mx.square(value)) for _, value in tree_flatten(gradients)))
        mx.eval(gradients, norm)
        skipped = self._unusable([example for part in parts for example in part], _added(sums), norm.item())
        return skipped or (_added(sums), gradients)

    def _evaluated_with_gradient(self, examples: Sequence[Example]) -> tuple[Sums, Any]:
        """Evaluated, so that nothing of a part is left when the next one begins."""
        arrays, gradients = self._enqueued(examples)
        mx.eval(arrays, gradients)
        mx.synchronize()
        return Sums(*(value.item() for value in arrays)), gradients

    def _enqueued(self, examples: Sequence[Example]) -> tuple[Sums, Any]:
        """Sums, and the gradient of the loss sum, not evaluated yet."""
        batch, self._prepared = self._prepared, None
        if batch is None or batch.examples != tuple(examples):
            batch = make_batch(examples)
        return self._sums_and_gradients(batch, self.teacher.teach(batch))

    def _sums_and_gradients(self, batch: Batch, teacher: TeacherParts) -> tuple[Sums, Any]:
        """Made anew each time: kept, it would hold this object in a cycle, and with it all that the teacher keeps."""
        found: tuple[Sums, Any] = nn.value_and_grad(self.draft, self._sums)(batch, teacher)
        return found

    def _sums(self, batch: Batch, teacher: TeacherParts) -> Sums:
        loss, rows = self._loss(batch, teacher, self.accepted)
        return loss.sums(rows, self.piece)

    def _loss(self, batch: Batch, teacher: TeacherParts, accepted: float | None = None) -> tuple[ChunkedLoss, mx.array]:
        forward, kind = self.forward, self.settings.loss
        rows = forward.hidden(batch.inputs, batch.positions)  # (M, D)
        return ChunkedLoss(kind, forward.head, batch, teacher, self.width, forward.module(), accepted), rows

    def _update(self, gradients: Any, tokens: mx.array | int, rate: float) -> mx.array:
        """Enqueue the update with the mean gradient; gives its norm before clipping."""
        mean = tree_map(lambda gradient: gradient / tokens, gradients)
        clipped, norm = optim.clip_grad_norm(mean, self.settings.max_grad_norm)
        self.optimizer.learning_rate = rate
        self.optimizer.update(self.draft, clipped)
        return norm

    def _unusable(self, examples: Sequence[Example], sums: Sums, norm: float) -> SkippedBatch | None:
        """Why a micro-batch with these sums, and this norm of a gradient, must not be trained on; None where it may."""
        coldest = min(example.sampler.temperature or 1.0 for example in examples)
        reason = problem(sums, norm, self.settings.max_loss / min(1.0, coldest))
        return None if reason is None else SkippedBatch(tuple(example.record_id for example in examples), reason)

    def _give_up_after(self, in_row: int, last: SkippedBatch, step: int) -> None:
        if in_row >= self.settings.max_skipped_batches:
            raise BatchesUnusable(
                f"training stopped at step {step}: {in_row} micro-batches in a row could not be used; of the last one, "
                f"records {', '.join(last.record_ids)}, {last.reason}. Lower training.learning_rate or look at these "
                "records; no adapter was made"
            )

    def evaluate(self, examples: Sequence[Example]) -> Sums:
        """The sums of one micro-batch without dropout or gradient, as Python numbers."""
        self.draft.eval()
        return _added([self._evaluated(part) for part in self.fit.pieces(examples)])

    def _evaluated(self, examples: Sequence[Example]) -> Sums:
        batch = make_batch(examples)
        loss, rows = self._loss(batch, self.teacher.teach(batch))
        return Sums(*(value.item() for value in loss.values(rows, self.piece)))

    def probe(self, length: int, labels: int, piece: int) -> int | None:
        """Bytes that MLX takes at most, beside what it holds, for a pass over one row; None where it is out of memory.

        Args:
            length: inputs of the row.
            labels: supervised ones among them, at most all.
            piece: positions whose logits exist at a time.
        """
        example = Example("", "", (0,) * (length + 1), length + 1 - labels, _GREEDY)  # no record: needs no target
        usual, self.piece = self.piece, piece
        self.draft.train()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        try:
            with unchanged():
                self._evaluated_with_gradient([example])
        except memory.REFUSALS as error:
            if not memory.is_out_of_memory(error):
                raise
            return None
        finally:
            self.piece = usual
        return int(mx.get_peak_memory() - before)


def learning_rate(step: int, steps: int, peak: float, warmup_steps: int) -> float:
    """Linear warm-up to the peak, then a straight line down to 0 at the end of the training (arXiv 2502.15938).

    With w = min(`warmup_steps`, ⌊N/5⌋), or 1 for N = 2 to 4, the rate of step s is peak · (s + 1)/(w + 1) where s < w,
    and peak · (N − s)/(N − w) from there on: the last one, s = N − 1, is made at peak/(N − w).

    Args:
        step: s, from 0 to N - 1.
        steps: N, the steps of the whole training: the planned ones, or those that fit into its time limit
            (`time_limit`). Each step takes N as it is known then, so where N changes, so does the line.
        peak: the highest rate.
        warmup_steps: steps before the peak, of a training that is long enough.
    """
    warmup = min(warmup_steps, max(int(MOST_WARMUP * steps), int(steps > 1)))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (steps - step) / (steps - warmup)


def problem(sums: Sums, gradient_norm: float, max_loss: float) -> str | None:
    """Why a micro-batch must not be trained on; None where it may.

    Args:
        sums: of the micro-batch, Python numbers.
        gradient_norm: of the loss sum.
        max_loss: the most that the mean loss of a token may be.
    """
    if sums.tokens == 0:
        return "it has no supervised token"
    loss = float(sums.loss / sums.tokens)
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    if loss > max_loss:
        return f"its loss {loss:.4g} is above {max_loss:g} (training.max_loss / temperature)"
    if not math.isfinite(gradient_norm):
        return f"the norm of its gradient is {gradient_norm}"
    return None


def under(prefix: str, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """The arrays whose name starts with `prefix`, by the rest of their name."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _skipped_for_length(example: Example) -> SkippedBatch:
    reason = (
        f"its prompt of {example.prompt_length:,} tokens does not fit into memory, even with activations computed "
        "again; lower data.max_prompt_length, or allow more with training.memory"
    )
    return SkippedBatch((example.record_id,), reason)


def _added(sums: Sequence[Sums]) -> Sums:
    return sums[0] if len(sums) == 1 else Sums(*(sum(column) for column in zip(*sums, strict=True)))


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, as different as theirs."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 0x9E3779B97F4A7C15 + number + 1) % (1 << 64)
    return mixed
