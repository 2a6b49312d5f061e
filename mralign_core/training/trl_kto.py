"""MR-ALIGN in a TRL script: :class:`trl.KTOTrainer` with a weight on each completion token.

Only the implicit reward changes (Eq. 9 of arXiv 2510.24794): log-probabilities of policy and reference are multiplied
by the tokens' weights before TRL sums them. z0 stays unweighted. All else is TRL's, and so are all of its options.

Rows of the data set say their weights in one of two ways:

* ``prompt``, ``completion`` and ``label`` as for TRL, text or messages, and ``segments``: a list of ``start``, ``end``
  (characters of the completion's text) and ``weight``. Text that no segment holds has weight 1. Blanks go with
  what is before them, the opening think tag with what is behind it; the closing tag and the answer carry 1.
* ``prompt_ids``, ``completion_ids`` and ``label``, and ``completion_weights``: a weight for each of ``completion_ids``.
  They are trained on as they are.

Rows of ids may have more: ``KL_completion_ids``, the completion behind the row's prompt in the pair that z0 is
estimated from (TRL takes that of the row before in the batch, which may answer the same question); and, for
``precompute_ref_log_probs``, ``ref_logps`` and ``ref_KL_logps``: log-probability under the reference of the completion,
weighted, and of the pair, plain.

TRL 1.16 is what this was written against: it overrides methods of its trainer that are not public.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.liger import apply_liger_kernel
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.utils import add_fused_lm_head, pad

from mralign_core.errors import DataError
from mralign_core.generation.control_tokens import decode_tokens
from mralign_core.generation.segmenting import token_offsets
from mralign_core.method.token_weights import segment_token_spans, token_weights
from mralign_core.method.traces import Span
from mralign_core.training.examples import TrainingExample
from mralign_core.training.pairs import kl_partners
from mralign_core.training.reference import Reference

logger = logging.getLogger("mralign_core.training")

WEIGHT_COLUMN = "completion_weights"
"""Column of the data set, key of the batch, and argument of the model's forward pass."""
SPANS_COLUMN = "segments"
ID_COLUMNS = ("prompt_ids", "completion_ids")
PAIR_COLUMN = "KL_completion_ids"
REFERENCE_COLUMNS = ("ref_logps", "ref_KL_logps")
OPENING_TAG, CLOSING_TAG = "<think>", "</think>"
FEWEST_OF_CLASS = 4
"""Rows of a class in a batch of a device."""


class WeightedCollator(DataCollatorForUnpairedPreference):
    """TRL's collator of unpaired rows, with ``completion_weights`` (B, T) beside ``input_ids``; 1 on the prompt.

    Example:
        >>> collator = WeightedCollator(pad_token_id=0)
        >>> row = {"prompt_ids": [1, 2], "completion_ids": [3, 4], "completion_weights": [0.5, 1.0], "label": True}
        >>> collator([row])["completion_weights"].tolist()
        [[1.0, 1.0, 0.5, 1.0]]
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of rows as :class:`MRAlignKTOTrainer` prepares them.

        Raises:
            DataError: a row's weights are not one a token, as may be in a stream, which nobody has looked through.
        """
        for number, row in enumerate(examples):
            _check_weights(f"row {number} of a batch", row["completion_ids"], row.get(WEIGHT_COLUMN))
        batch: dict[str, Any] = super().torch_call(examples)
        rows = [[1.0] * len(each["prompt_ids"]) + list(each[WEIGHT_COLUMN]) for each in examples]
        batch[WEIGHT_COLUMN] = pad(
            [torch.tensor(row[: self.max_length], dtype=torch.float32) for row in rows],
            padding_value=1,
            padding_side="right",
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        return batch


class MRAlignKTOTrainer(KTOTrainer):
    """:class:`trl.KTOTrainer` that weighs the log-ratio of each completion token by its segment's weight.

    Takes what ``KTOTrainer`` takes; see the module for the columns of the data sets. Text only. TRL's curves
    of implicit rewards and ``logps/*`` are weighted, ``kl`` is not. Two more are logged: ``kl_raw``, z0 before it is
    clamped at 0, and the correlation of implicit reward and length (see :func:`length_correlation`).

    Args:
        model: as for TRL: a path, a hub id or a model, with an adapter or without.
        ref_model: as for TRL.
        args: as for TRL. Its ``max_length`` of 1024 cuts off the end, where the answer is: None cuts nothing.
        data_collator: one that gives ``completion_weights`` too; :class:`WeightedCollator` unless said otherwise.
        train_dataset: rows as the module says.
        eval_dataset: rows like them.
        processing_class: the tokenizer; the model's unless said otherwise.
        options: all other arguments of ``KTOTrainer``.

    Raises:
        DataError: rows have no weights, or weights that do not belong to their tokens; it names the row.
    """

    _tag_names = ["trl", "kto", "mr-align"]  # noqa: RUF012 (TRL's, which it declares so)
    _name = "MR-ALIGN"

    def __init__(
        self,
        model: Any,
        ref_model: PreTrainedModel | None = None,
        args: KTOConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> None:
        name = model if isinstance(model, str) else model.config.name_or_path
        args = args or KTOConfig(f"{name.split('/')[-1]}-MR-ALIGN")
        if processing_class is None:
            model_options: Any = args.model_init_kwargs or {}
            processing_class = AutoTokenizer.from_pretrained(
                name, revision=model_options.get("revision"), trust_remote_code=args.trust_remote_code
            )
        if processing_class.pad_token is None:
            processing_class.pad_token = processing_class.eos_token
        multiple: Any = args.pad_to_multiple_of  # "auto" is a number by now
        self._sums: list[Tensor] = []
        self._pair_sums: list[Tensor] = []
        self._is_weighing = False
        super().__init__(
            model,
            ref_model,
            args,
            data_collator or WeightedCollator(processing_class.pad_token_id, args.max_length, multiple),
            train_dataset,
            eval_dataset,
            processing_class,
            **options,
        )
        self._weigh()

    def _weigh(self) -> None:
        """Change policy and reference alike: once, before either makes a log-probability."""
        if self._is_weighing:
            return
        self._is_weighing = True
        models = [self.model.get_base_model() if is_peft_model(self.model) else self.model]
        if self.ref_model is not None:
            models.append(self.accelerator.unwrap_model(self.ref_model))
        for model in models:
            if self.args.use_liger_kernel:
                # transformers does so to the policy alone, and when training starts: it would round in another way than
                # a reference that is a model of its own or was computed before.
                apply_liger_kernel(model, self.args.liger_kernel_config)
            weigh_logps(model, self._sums, self.accelerator.autocast)

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: KTOConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        """Rows with ids, weights and KL pairs; those that have them already stay as they are."""
        columns = set(next(iter(dataset)))
        _require_weights(columns, dataset_name)
        if not columns.issuperset(ID_COLUMNS):
            dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
            dataset = dataset.map(_weigh_row, with_indices=True, fn_kwargs={"tokenizer": processing_class})
        elif self.calculate_KL and PAIR_COLUMN not in columns:
            dataset = dataset.map(_rotate, batched=True, batch_size=args.per_device_train_batch_size)
        if isinstance(dataset, Dataset):
            _check_rows(dataset, args.max_length)
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """With the columns of the reference; those that a data set has already are taken as they are.

        Raises:
            DataError: it has one of two that are needed.
        """
        wanted = REFERENCE_COLUMNS if self.calculate_KL else REFERENCE_COLUMNS[:1]
        known = set(REFERENCE_COLUMNS).intersection(dataset.column_names or ())
        if known.issuperset(wanted):
            return dataset
        if known:
            raise DataError(
                f"the {name} data set has {known.pop()!r} of {' and '.join(wanted)}: give all of them, or none and TRL "
                "computes them"
            )
        self._weigh()  # TRL calls this while it sets itself up
        if isinstance(dataset, Dataset):
            # TRL keeps what it computes by rows and model alone, and would take it again for rows that are cut
            # elsewhere, or were not weighted, and for other kernels.
            dataset = copy.copy(dataset)
            cut = getattr(self.data_collator, "max_length", self.args.max_length)
            kernels = self.args.use_liger_kernel and sorted((self.args.liger_kernel_config or {}).items())
            told = (dataset._fingerprint, self._name, cut, self.args.bf16, self.args.fp16, kernels)
            dataset._fingerprint = Hasher.hash(told)
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if WEIGHT_COLUMN not in self._signature_columns:
            self._signature_columns.append(WEIGHT_COLUMN)

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Log-probability of completions, weighted, and of KL pairs, plain, under the reference."""
        _require_weighted(inputs)

        def weighted(**arguments: Any) -> Any:
            outputs = model(**arguments)
            if arguments["input_ids"] is inputs["input_ids"]:
                outputs.log_probs = outputs.log_probs * inputs[WEIGHT_COLUMN][:, 1:]
            return outputs

        logps: tuple[Tensor, Tensor | None] = super().compute_ref_log_probs(weighted, inputs)
        return logps

    def _compute_kl_logps(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor | None:
        plain = {name: value for name, value in batch.items() if name != WEIGHT_COLUMN}
        logps: Tensor | None = super()._compute_kl_logps(model, plain)
        if logps is not None:
            self._pair_sums.append(logps.detach())
        return logps

    def _compute_loss(self, model: Any, inputs: Mapping[str, Tensor], return_outputs: bool) -> Any:
        _require_weighted(inputs)
        self._sums.clear()
        self._pair_sums.clear()
        loss = super()._compute_loss(model, inputs, return_outputs)
        self._note_raw_kl_and_lengths(inputs)
        return loss

    def _note_raw_kl_and_lengths(self, inputs: Mapping[str, Tensor]) -> None:
        """Log z0 before the clamp, and how implicit rewards go with length; the policy's sums came before the rest."""
        is_known = self.precompute_ref_logps
        reference = inputs["ref_logps"] if is_known else self._sums[1]
        told = {"rewards/length_correlation": length_correlation(self._sums[0] - reference, inputs)}
        if self.calculate_KL:
            pairs = inputs["ref_KL_logps"] if is_known else self._pair_sums[1]
            told["kl_raw"] = (self._pair_sums[0] - pairs).mean()
        for name, value in told.items():
            mean = self.accelerator.gather_for_metrics(value).nanmean().item()
            if not math.isnan(mean):
                self._metrics["train" if self.model.training else "eval"][name].append(mean)


def length_correlation(implicit_rewards_B: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """How implicit reward goes with length in both classes: the smaller of two correlations, 0 where signs differ.

    One over all rows would be large where one class learns and the other does not, since log-ratios of longer rows are
    larger. NaN where a class has fewer than :data:`FEWEST_OF_CLASS` rows, whose correlation is large by chance.

    Args:
        implicit_rewards_B: a row's.
        batch: with ``label`` (B,) and ``completion_mask`` (B, T).

    Example:
        >>> label = torch.tensor([True, False]).repeat(4)
        >>> batch = {"label": label, "completion_mask": torch.tril(torch.ones(8, 8))}
        >>> implicit_rewards = torch.arange(8.0)
        >>> round(length_correlation(implicit_rewards, batch).item(), 3)
        1.0
        >>> length_correlation(torch.where(label, implicit_rewards, -implicit_rewards), batch).item()
        0.0
    """
    both = torch.stack([implicit_rewards_B.float(), batch["completion_mask"].sum(-1).float()])
    is_desirable = batch["label"].bool()
    if min(is_desirable.sum(), (~is_desirable).sum()) < FEWEST_OF_CLASS:
        return both.new_tensor(math.nan)
    first, second = (torch.corrcoef(both[:, chosen])[0, 1] for chosen in (is_desirable, ~is_desirable))
    return torch.where(first * second < 0, 0.0, first.sign() * torch.minimum(first.abs(), second.abs()))


def weigh_logps(
    model: PreTrainedModel, sums: list[Tensor], autocast: Callable[[], AbstractContextManager[Any]]
) -> None:
    """Have a model's fused head make its logits in float32, and weigh ``log_probs`` by ``completion_weights``.

    TRL's own head rounds logits to bfloat16 where the model is in it. A log-ratio of two such heads is blurred by more
    than a step moves it, and one against a reference that was computed in float32, as ours is, is not 0 even for a
    policy that is the reference.

    Args:
        model: changed in place; a pass without the fused head is as it was.
        sums: takes the sum over each row, (B,), of each pass that was weighted.
        autocast: the accelerator's: what it has put around the forward pass of a reference, the new head goes past.
    """
    add_fused_lm_head(model, cast_lm_head_to_fp32=True, outputs=("log_probs", "entropy", "mean_logits"))
    fused_forward = model.forward

    @functools.wraps(fused_forward)
    def forward(*positional: Any, completion_weights: Tensor | None = None, **arguments: Any) -> Any:
        with autocast():
            outputs = fused_forward(*positional, **arguments)
        if completion_weights is not None and arguments.get("fused_lm_head"):
            weights = completion_weights[:, 1:].to(outputs.log_probs.device)
            # Prompt learning puts virtual tokens in front.
            virtual = outputs.log_probs.shape[1] - weights.shape[1]
            outputs.log_probs = outputs.log_probs * torch.nn.functional.pad(weights, (virtual, 0), value=1.0)
            sums.append(outputs.log_probs.detach().sum(-1))
        return outputs

    model.forward = forward


def rows_for_trl(examples: Sequence[TrainingExample], reference: Reference | None = None) -> Dataset:
    """Training examples as rows for :class:`MRAlignKTOTrainer`, with the KL pairs that our own loop takes.

    Args:
        examples: see :func:`~mralign_core.training.examples.build_examples`.
        reference: their log-probabilities under the reference, for ``precompute_ref_log_probs``.

    Raises:
        DataError: see :func:`~mralign_core.training.pairs.kl_partners`.
    """
    rows: list[dict[str, Any]] = [
        {
            "prompt_ids": example.prompt_ids,
            "completion_ids": example.completion_ids,
            PAIR_COLUMN: examples[partner].completion_ids,
            WEIGHT_COLUMN: example.weights,
            "label": example.is_positive,
        }
        for example, partner in zip(examples, kl_partners(examples), strict=True)
    ]
    if reference is not None:
        for number, row in enumerate(rows):
            row["ref_logps"] = float(reference.logps[number].double() @ torch.tensor(row[WEIGHT_COLUMN]).double())
            row["ref_KL_logps"] = reference.kl_logps[number]
    return Dataset.from_list(rows)


def _require_weighted(batch: Mapping[str, Any]) -> None:
    if WEIGHT_COLUMN not in batch:
        raise DataError(
            f"the batch has no {WEIGHT_COLUMN!r}, so this would be plain KTO: leave data_collator out, or "
            "derive yours from WeightedCollator"
        )


def _require_weights(columns: set[str], dataset_name: str) -> None:
    wanted = WEIGHT_COLUMN if columns.issuperset(ID_COLUMNS) else SPANS_COLUMN
    if wanted not in columns:
        raise DataError(
            f"the {dataset_name} data set has no column {wanted!r}, so this would be plain KTO; it has "
            f"{', '.join(sorted(columns))}. Add {SPANS_COLUMN!r} (start, end, weight) to rows of text, or "
            f"{WEIGHT_COLUMN!r} to rows of prompt_ids and completion_ids; for plain KTO take trl.KTOTrainer"
        )
    if "chosen" in columns:
        raise DataError(
            f"the {dataset_name} data set is paired (chosen, rejected), and segments are those of one completion: give "
            "rows of prompt, completion, label and segments"
        )


def _rotate(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """KL pairs as TRL makes them: each prompt with the completion of the row before, in a batch."""
    completions = rows["completion_ids"]
    return {PAIR_COLUMN: [completions[-1], *completions[:-1]]}


def _weigh_row(row: dict[str, Any], number: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The weight of each of a row's ``completion_ids``, from its segments."""
    ids = list(row["completion_ids"])
    segments = _segments_of(row, number)
    if not segments:
        return {WEIGHT_COLUMN: [1.0] * len(ids)}
    completion = row["completion"]
    is_messages = not isinstance(completion, str)
    text = completion[-1]["content"] if is_messages else completion.removesuffix(tokenizer.eos_token or "")
    written = decode_tokens(tokenizer, ids)
    start = written.rfind(text.strip())
    if start < 0 or (is_messages and len(completion) > 1):
        raise DataError(
            f"row {number}: its tokens decode to {written[:60]!r}…, not to the completion {text[:60]!r}… that its "
            "segments are of (a chat template may rewrite it): give text for messages, or prompt_ids, completion_ids "
            f"and {WEIGHT_COLUMN}"
        )
    last = segments[-1][0].end
    if last > len(text):
        raise DataError(f"row {number}: its last segment ends at character {last} of a completion of {len(text)}")
    # Tokenizers may leave the first blank out.
    offset = start - (len(text) - len(text.lstrip()))
    closing = text.find(CLOSING_TAG, last)
    thinking_end = last if closing < 0 else closing
    segments = _with_gaps(text, segments, thinking_end)
    spans = [Span(max(0, span.start + offset), span.end + offset) for span, _ in segments]
    try:
        token_spans = segment_token_spans(
            token_offsets(tokenizer, ids, written), spans, thinking_end=offset + thinking_end
        )
    except DataError as error:
        raise DataError(f"row {number}: {error}") from None
    return {WEIGHT_COLUMN: token_weights(len(ids), token_spans, [weight for _, weight in segments]).tolist()}


def _segments_of(row: Mapping[str, Any], number: int) -> list[tuple[Span, float]]:
    """Span and weight of each of a row's segments.

    Raises:
        DataError: the row has none, though it may have an empty list of them; or one lacks a value.
    """
    segments = row.get(SPANS_COLUMN)
    if segments is None:
        raise DataError(
            f"row {number}: it has no {SPANS_COLUMN!r}, and weights of 1 would be plain KTO; give [] if that is meant"
        )
    for index, each in enumerate(segments):
        if any(each.get(name) is None for name in ("start", "end", "weight")) or each["start"] < 0:
            raise DataError(f"row {number}: segment {index} is {each}; it needs start, from 0 on, end and weight")
    return [(Span(each["start"], each["end"]), float(each["weight"])) for each in segments]


def _with_gaps(text: str, segments: list[tuple[Span, float]], thinking_end: int) -> list[tuple[Span, float]]:
    """Segments, and one of weight 1 for text between, before or behind them that is more than blanks and tags.

    Blanks and tags alone belong to a neighbour, as in the pipeline, whose segments leave nothing else out.

    Example:
        >>> _with_gaps("<think>A. Hm. B.", [(Span(7, 9), 0.5), (Span(14, 16), 2.0)], 16)[1]
        (Span(start=10, end=13), 1.0)
    """
    found: list[tuple[Span, float]] = []
    start = 0
    for span, weight in [*segments, (Span(thinking_end, thinking_end), 1.0)]:
        gap = text[start : span.start]
        said = gap.replace(OPENING_TAG, " " * len(OPENING_TAG))
        if said.strip():
            first = start + len(said) - len(said.lstrip())
            found.append((Span(first, first + len(said.strip())), 1.0))
        found.append((span, weight))
        start = span.end
    return found[:-1]


def _check_weights(name: str, completion_ids: Sequence[int], weights: Sequence[float] | None) -> None:
    weights = [] if weights is None else weights
    if len(weights) != len(completion_ids) or not np.isfinite(np.array(weights, dtype=float)).all():
        raise DataError(
            f"{name}: {len(weights)} {WEIGHT_COLUMN} for {len(completion_ids)} completion_ids; each needs a finite one"
        )


def _check_rows(dataset: Dataset, max_length: int | None) -> None:
    """Refuse weights that are not one a token, and warn of rows that TRL will cut."""
    num_cut = 0
    for number, row in enumerate(dataset.select_columns([*ID_COLUMNS, WEIGHT_COLUMN])):
        prompt, completion, weights = (row[name] for name in (*ID_COLUMNS, WEIGHT_COLUMN))
        _check_weights(f"row {number}", completion, weights)
        num_cut += max_length is not None and len(prompt) + len(completion) > max_length
    if num_cut:
        logger.warning(
            "%d of %d rows exceed max_length %s: TRL cuts off their end, where the answer is; set max_length=None in "
            "KTOConfig, or leave them out",
            num_cut,
            len(dataset),
            max_length,
        )
