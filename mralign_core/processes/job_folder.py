"""A training job as files, from the process that starts others to those, and their results back.

A folder holds ``job.json``, its tables as ``candidates.parquet`` and so on, and in the end ``result.parquet``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.policy_logps import POLICY_LOGPS
from mralign_core.schemas.reference_logps import REFERENCE_LOGPS
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.schemas.training_metrics import TRAINING_METRICS
from mralign_core.storage.tables import read_table, write_table
from mralign_core.training.job import ReferenceJob, TrainingJob
from mralign_core.training.policy_logps import PolicyJob

JOB_FILE, RESULT_FILE = "job.json", "result.parquet"
TABLES = {"candidates": CANDIDATES, "segment_weights": SEGMENT_WEIGHTS, "reference": REFERENCE_LOGPS}
"""Fields of a job that travel as tables."""


def write_job(job: ReferenceJob, folder: Path) -> None:
    """Write a job, whole.

    Raises:
        DataError: a row of a table breaks its contract.
    """
    for name, table in TABLES.items():
        frame = getattr(job, name, None)
        if frame is not None:
            write_table(folder, f"{name}.parquet", frame, table)
    (folder / JOB_FILE).write_text(job.model_dump_json())


def read_job(folder: Path) -> ReferenceJob:
    """The job in a folder, of the kind that it is."""
    values = json.loads((folder / JOB_FILE).read_text())
    for name in TABLES:
        path = folder / f"{name}.parquet"
        if path.exists():
            values[name] = read_table(path)
    kind = PolicyJob if "adapter" in values else TrainingJob if "variant" in values else ReferenceJob
    return kind.model_validate(values)


def write_result(job: ReferenceJob, folder: Path, frame: pd.DataFrame) -> None:
    """Write the table that a job gave: metrics of a training, or log-probabilities."""
    kinds = {TrainingJob: TRAINING_METRICS, PolicyJob: POLICY_LOGPS, ReferenceJob: REFERENCE_LOGPS}
    write_table(folder, RESULT_FILE, frame, kinds[type(job)])


def read_result(folder: Path) -> pd.DataFrame:
    """What :func:`write_result` wrote."""
    return read_table(folder / RESULT_FILE)
