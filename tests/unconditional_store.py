"""An S3-compatible server that ignores the condition on a write: whoever creates replaces."""

from mralign_core.storage import claims
from mralign_core.storage.filesystem import StoreFiles


def ignore_conditions(monkeypatch):
    """Have every store of this process behave so."""

    def create(self, path, data):
        self.write(path, data)
        return True

    monkeypatch.setattr(StoreFiles, "create", create)
    monkeypatch.setattr(claims, "_keeps_conditions", claims._probe)
    monkeypatch.setattr(claims, "SETTLE_S", 0.6)
