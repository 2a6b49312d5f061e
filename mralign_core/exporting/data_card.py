"""The card of an exported data set (``README.md``): front matter that ``datasets`` and the hub read, then words.

No clock time and no path is in it, so that the same run gives the same bytes. A licence stands there only where
somebody stated it.
"""

from __future__ import annotations

import json
from pathlib import Path

from mralign_core.exporting.export_file import ExportFile
from mralign_core.exporting.paths import EXPORT_FILE
from mralign_core.exporting.trainer_formats import DATASET_INFO, ROW_FORMATS, DataFormat, dataset_name
from mralign_core.reporting.markdown import bullets, code, literal, one_line, table

DATA_CARD = "README.md"
NOT_STATED = "not stated"
SPLIT_NAME = "train"
DATA_FOLDER = "data"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGEST = "1M<n<10M"

TRACE_COLUMNS = {
    "trace_id, question_id, question_set, draw": "which trace, of which question, of which set, and which of its draws",
    "question, answers, stratum": "the question, its gold answers, and its kind (empty where there is none)",
    "polarity, label": "`positive` or `negative`; `label` is true for positive, which KTO calls desirable",
    "prompt, completion, answer": "what the model saw, what it wrote, and the answer in it",
    "prompt_ids": "the prompt in tokens of the base model",
    "completion_ids": "the completion in tokens, with the end token; trained on as they are",
    "num_stored_ids": "how many of `completion_ids` are the completion's own; one behind them is the end token",
    "end_token_id": "the end token that the model drew; null where that is not known, as of traces from a file",
    "completion_weights": "a weight for each of `completion_ids`; null where the trace has no weights",
    "reasoning_tokens": "tokens up to the end of the thinking",
    "segments.start, end": "characters (code points) of the segment in `completion`",
    "segments.token_start, token_end": "its tokens in `completion_ids`, the last one not included",
    "segments.labels, confidences": "at most two labels, and how sure the annotators were, 0 to 10",
    "segments.rule": "who decided: both annotators (`agree`), one who was sure (`merge`), the adjudicator "
    "(`adjudicate`), a distilled annotator alone (`distilled`), or nobody (`unlabelled`)",
    "segments.step": "segments with one number were merged by the annotators, and count as one",
    "segments.labels_a, confidences_a, labels_b, confidences_b": "what each annotator said; of b nothing where the "
    "rule is `distilled`, since it was not asked",
    "segments.weight": "its weight (below), by which the log-ratios of its tokens are multiplied",
    "segments.ratio, clipped, support": "the ratio before shrinkage and clip, whether the clip moved it, and the soft "
    "counts behind it",
    "segments.weight_low, weight_high": "bootstrap interval of the weight; null without bootstrap",
}
CARD_COLUMNS: dict[DataFormat, dict[str, str]] = {
    "parquet": TRACE_COLUMNS,
    "trl": {
        "prompt, completion": "text as the model saw and wrote it, without the end token",
        "label": "true for positive traces, which KTO calls desirable",
        "segments": "`start` and `end` in characters of `completion`, and `weight`; empty where there are no weights. "
        "TRL's own trainer passes over them",
    },
    "llama-factory": {
        "conversations": "turns with `from` (`human`, `gpt`) and `value`",
        "kto_tag": "true for positive traces, which KTO calls desirable",
    },
    "axolotl": {
        "prompt, completion": "text as the model saw and wrote it, without the end token",
        "label": "true for positive traces, which KTO calls desirable",
    },
}
CARD_WEIGHTS = """\
A segment's weight says how much likelier the move into it is in traces that end right than in all traces (positive
traces), or in traces that end wrong than in all (negative ones), clipped (MR-ALIGN, arXiv 2510.24794, Eq. 10; the
settings that were used stand in `mralign-export.json`). MR-ALIGN multiplies the log-ratio of policy and reference by
it, token by token (Eq. 9): 1 is plain KTO. The opening think tag goes with the first segment, blanks with the segment
before them; the closing tag, the answer and the end token carry 1."""
LOAD = """\
```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", split="train")
```"""
TRAIN_WEIGHTED = """
`MRAlignKTOTrainer` of this project is TRL's `KTOTrainer` with these weights, and takes the rows as they are:

```python
from mralign_core.training.trl_kto import MRAlignKTOTrainer

rows = rows.filter(lambda row: {has_weights}).shuffle(seed=0)
trainer = MRAlignKTOTrainer({model}, args=args, train_dataset=rows)
```"""
TRAIN_PLAIN = """
For plain KTO give them to `trl.KTOTrainer`. Set `max_length=None` in `KTOConfig`: the default cuts off the end of long
rows, where the answer is."""
HAS_WEIGHTS: dict[DataFormat, str] = {
    "parquet": 'row["completion_weights"] is not None',
    "trl": 'len(row["segments"]) > 0',
}
USE_LLAMA_FACTORY = """
In the config of `llamafactory-cli train`, with a template that fits the model:

```yaml
stage: kto
dataset_dir: path/to/this/folder
dataset: {name}
```

`{info}` describes the data set; another `dataset_dir` needs its entry, with the path of the file in it."""
USE_AXOLOTL = """
In the config of `axolotl train`:

```yaml
rl: kto
datasets:
  - path: path/to/this/folder
    split: train
    type: {field_prompt: prompt, field_completion: completion, field_label: label}
remove_unused_columns: false
```

The prompt is rendered already, so no chat template is named."""
IN_AGAIN = """
The traces go back into a store without loss, and so do the labels with the second line:

```sh
mralign run --config {name} --from-traces path/to/this/folder
mralign run --config {name} --from-traces path/to/this/folder --set annotate.source=traces
```"""


def write_data_card(folder: Path, export: ExportFile) -> None:
    """Write the card of an export into its folder."""
    parts = [
        front_matter(export),
        _head(export),
        "## What is in it\n\n" + _contents(export),
        "## How to load it\n\n" + _usage(export),
        "## Columns\n\n"
        + table(["column", "what it is"], [[code(k), v] for k, v in CARD_COLUMNS[export.format].items()]),
        *(["## What the weights mean\n\n" + CARD_WEIGHTS] if export.format in HAS_WEIGHTS else []),
        "## Where the questions come from, and licences\n\n" + _licences(export),
        "## Where it comes from\n\n" + _provenance(export),
    ]
    (folder / DATA_CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def front_matter(export: ExportFile) -> str:
    """The YAML between the rulers: what ``load_dataset`` goes by, and what the hub shows."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    num_rows = sum(entry.rows or 0 for name, entry in export.files.items() if name.startswith(f"{DATA_FOLDER}/"))
    num_bytes = sum(entry.size for name, entry in export.files.items() if name.startswith(f"{DATA_FOLDER}/"))
    pattern = f"{DATA_FOLDER}/{SPLIT_NAME}-*.{ROW_FORMATS[export.format].suffix}"
    card = DatasetCardData(
        pretty_name=f"MR-ALIGN traces of {export.name}",
        license=export.licence or None,
        tags=["mr-align", "kto", "reasoning-traces"],
        size_categories=[next((name for most, name in SIZES if num_rows < most), LARGEST)],
        configs=[{"config_name": "default", "data_files": [{"split": SPLIT_NAME, "path": pattern}]}],
    )
    splits = SplitDict()
    splits.add(SplitInfo(SPLIT_NAME, num_bytes=num_bytes, num_examples=num_rows))
    info = DatasetInfo(features=Features.from_arrow_schema(ROW_FORMATS[export.format].schema), splits=splits)
    info.dataset_size = num_bytes
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    return f"---\n{card.to_yaml()}\n---"


def _head(export: ExportFile) -> str:
    return (
        f"# MR-ALIGN traces of {literal(export.name)}\n\n"
        f"Reasoning traces of {literal(export.base_model)} that end right or wrong, cut into segments; each segment "
        "with labels of what it does, and a weight for training. Made by the pipeline of MR-ALIGN (arXiv 2510.24794)."
    )


def _contents(export: ExportFile) -> str:
    flat = {name: value for name, value in export.counts.items() if not isinstance(value, dict)}
    shown = bullets({name: f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for name, value in flat.items()})
    for name in ("rules", "labels"):
        if of := export.counts.get(name):
            rows = [[literal(each), f"{number:,}"] for each, number in of.items()]
            shown += "\n\n" + table([name[:-1], "segments"], rows, numbers=[1])
    return shown


def _usage(export: ExportFile) -> str:
    if export.format == "llama-factory":
        return USE_LLAMA_FACTORY.format(name=dataset_name(export.name), info=DATASET_INFO).strip()
    if export.format == "axolotl":
        return USE_AXOLOTL.strip()
    model = json.dumps(export.base_model, ensure_ascii=False)
    text = LOAD + "\n" + TRAIN_WEIGHTED.format(has_weights=HAS_WEIGHTS[export.format], model=model)
    text += "\n" + TRAIN_PLAIN
    return text + ("\n" + IN_AGAIN.format(name=one_line(export.name)) if export.format == "parquet" else "")


def _licences(export: ExportFile) -> str:
    rows = [
        [
            literal(source.name) or "(not known)",
            literal(source.licence) or NOT_STATED,
            f"{source.num_questions:,}",
            f"{source.num_traces:,}",
        ]
        for source in export.sources
    ]
    whole = literal(export.licence) or NOT_STATED
    return (
        table(["question set", "licence", "questions", "traces"], rows, numbers=[2, 3])
        + f"\n\nLicence of this data set as a whole: {whole}. The thinking was written by "
        f"{literal(export.base_model)}, whose licence may say what its outputs may be used for."
    )


def _provenance(export: ExportFile) -> str:
    candidates = export.artifacts["candidates"]
    facts = {
        "config": export.name,
        "run": export.run or "artifacts that were named by hand",
        "base model": f"{export.base_model} {_revision(export)}".strip(),
        **{role.replace("_", " "): model for role, model in export.annotators.items()},
        "seed": candidates.seed if candidates.seed is not None else NOT_STATED,
        "mralign": candidates.code_version,
    }
    rows = [[literal(name), code(each.ref.key[:16]), code(each.ref.sha256)] for name, each in export.artifacts.items()]
    text = bullets(facts) + "\n\n" + table(["artifact", "key", "sha256"], rows)
    return text + f"\n\n`{EXPORT_FILE}` has all of it, with the settings and package versions of each artifact."


def _revision(export: ExportFile) -> str:
    model = export.artifacts.get("model")
    return model.model_revision if model else ""
