"""Curves as TensorBoard and W&B would show them, over kills and restarts."""

import logging
import math
import resource
import struct
import sys
import time

import pytest
import torch
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.training.curves import Meter, NoCurves, check_curves, open_curves

KEY = "0123456789abcdef" * 4


@pytest.fixture
def section(tmp_path):
    return TrainConfig(log_folder=str(tmp_path / "logs"))


def train(section, first_step, last_step, scale=1.0):
    curves = open_curves(section, "pocket", "kto", key=KEY)
    for step in range(first_step, last_step + 1):
        curves.log(
            step, {"step": step, "loss": scale * step, "implicit_reward_negative": math.nan if step % 2 else 0.25}
        )
    curves.close()


def read_events(path):
    """Events of a file of TFRecords, with their checksums checked."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        record, (checksum,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
        crc = crc32c(record)
        assert checksum == (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
        events.append(Event.FromString(record))
        data = data[16 + length :]
    return events


def shown(folder, tag):
    """The points that TensorBoard shows: a start of a session purges the steps from its own on."""
    points: list[tuple[int, float]] = []
    for path in sorted(folder.iterdir()):
        for event in read_events(path):
            if event.session_log.status == SessionLog.START:
                points = [(step, value) for step, value in points if step < event.step]
            points += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
    return points


def test_rows_are_points_and_nan_is_none(section, tmp_path):
    train(section, 1, 4)
    folder = tmp_path / "logs" / "pocket" / "kto"
    assert shown(folder, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert shown(folder, "implicit_reward_negative") == [(2, 0.25), (4, 0.25)]
    assert shown(folder, "step") == []


def test_restart_goes_on_with_the_curve_without_steps_twice(section, tmp_path):
    train(section, 1, 7)  # killed after step 7, which no checkpoint has
    train(section, 5, 9, scale=10.0)  # from the checkpoint after step 4, in the same second
    assert shown(tmp_path / "logs" / "pocket" / "kto", "loss") == [
        *((step, float(step)) for step in range(1, 5)),
        *((step, 10.0 * step) for step in range(5, 10)),
    ]


def test_tensorboard_itself_shows_the_same(section, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(section, 1, 7)
    train(section, 5, 9, scale=10.0)
    folder = tmp_path / "logs" / "pocket" / "kto"
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == shown(folder, "loss")


def test_what_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("a file, not a folder")
    train(TrainConfig(log_folder=str(tmp_path / "file")), 1, 3)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "goes on without curves" in caplog.text


def test_full_disk_is_one_warning(section, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # of a file, in bytes: as good as a full disk
    try:
        train(section, 1, 30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "File too large" in caplog.text


def test_no_curves_leave_no_file(tmp_path):
    section = TrainConfig(log_folder=str(tmp_path / "logs"), report_to="none")
    assert isinstance(open_curves(section, "pocket", "kto", key=KEY), NoCurves)
    assert not (tmp_path / "logs").exists()


def test_missing_wandb_is_told_with_the_command(section, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_curves(section.model_copy(update={"report_to": "wandb"}))


def test_wandb_offline_keeps_the_rows_without_a_login(section, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(section.model_copy(update={"report_to": "wandb"}), 1, 3)
    (file,) = tmp_path.glob("logs/pocket/kto/wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 120  # a process of W&B's own writes the file
    while b"implicit_reward_negative" not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"implicit_reward_negative" in file.read_bytes()


def test_meter_counts_since_the_last_reading():
    meter = Meter(torch.device("cpu"))
    meter.count(1000)
    found = meter.read()
    assert found.keys() == {"tokens_per_second"}
    assert found["tokens_per_second"] > 0
    assert meter.read() == {}
