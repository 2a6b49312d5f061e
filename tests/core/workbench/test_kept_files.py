"""Who waits for a file, and where it is kept."""

import shutil
import tempfile
import threading
import time
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


def test_where_a_cleaner_took_the_folder_files_are_made_anew():
    files = KeptFiles()
    first = Path(files.file("a.txt", lambda path: path.write_text("a")))
    shutil.rmtree(first.parent)
    anew = Path(files.file("a.txt", lambda path: path.write_text("anew")))
    assert anew.read_text() == "anew" and anew.parent != first.parent
    assert Path(files.file("b.txt", lambda path: path.write_text("b"))).parent == anew.parent


def test_all_threads_are_given_one_folder(monkeypatch):
    files, together, found = KeptFiles(), threading.Barrier(2), []

    class Slow(tempfile.TemporaryDirectory):
        def __init__(self, **options):
            time.sleep(0.2)  # long enough for another thread to come
            super().__init__(**options)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", Slow)

    def ask(name):
        together.wait(20)
        found.append(Path(files.file(name, lambda path: path.write_text(name))))

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a.txt", "b.txt")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len({path.parent for path in found}) == 1 and all(path.exists() for path in found)
