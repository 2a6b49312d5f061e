"""Section ``retrain.registry``: a model registry of the team's, which is told of the store's versions and aliases."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from mralign_core.addresses import checked_url
from mralign_core.config.base import Section, refuse_ignored

SQLITE = "sqlite:///"


def _checked_uri(value: str) -> str:
    if value.startswith(SQLITE) and value != SQLITE:
        return value
    try:
        return checked_url(value)
    except ValueError as error:
        raise ValueError(f"{error}; or name a database file, {SQLITE}PATH") from None


class RegistryConfig(Section):
    """A registry that receives the versions that aliases name, and the aliases. The store stays the truth."""

    kind: Literal["none", "mlflow"] = "none"
    """None, or MLflow's; that needs the extra `mlflow`."""
    uri: Annotated[str, AfterValidator(_checked_uri)] = ""
    """Address of the tracking server; or `sqlite:///PATH`, MLflow's own database on this machine. Credentials come from
    MLflow's variables (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN)."""
    model_name: str = Field("mr-align", pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,127}$")
    """Of the registered model, and of the experiment that its runs are in. It is the store's: all configs on one store
    that name it give it the same versions."""
    aliases: tuple[str, ...] = ()
    """Aliases that it receives, with the versions that they name or named; all of the store's when empty. Configs that
    train different models on one store name their own, and a registered model each."""

    @model_validator(mode="after")
    def _is_whole(self) -> RegistryConfig:
        if self.kind == "none":
            why = "when retrain.registry.kind is 'none'"
            refuse_ignored(self, "retrain.registry", ("uri", "model_name", "aliases"), why)
        elif not self.uri:
            raise ValueError("retrain.registry.uri is needed: the address of MLflow's server, such as http://host:5000")
        return self
