"""Who waits for a file, and where it is kept."""

import threading
from pathlib import Path

import pytest

from mralign_core.workbench.interruption import Asker, AskerLeftError, asked_by
from mralign_core.workbench.kept_files import KeptFiles


def test_who_waits_for_anothers_file_and_leaves_waits_no_longer():
    files, made, begun, go_on = KeptFiles(), [], threading.Event(), threading.Event()

    def make(path):
        begun.set()
        assert go_on.wait(20)
        made.append(path)
        path.write_text("whole")

    maker = threading.Thread(target=files.file, args=("a.txt", make))
    maker.start()
    assert begun.wait(20)
    asker = Asker()
    threading.Timer(0.1, asker.leave).start()
    threading.Timer(3, go_on.set).start()  # a waiter that hears nothing gets the file
    with asked_by(asker), pytest.raises(AskerLeftError):
        files.file("a.txt", make)
    assert not go_on.is_set()
    go_on.set()
    maker.join(20)
    assert Path(files.file("a.txt", make)).read_text() == "whole" and len(made) == 1
    with asked_by(asker), pytest.raises(AskerLeftError):
        files.file("a.txt", make)  # nor does it ask for what is there
