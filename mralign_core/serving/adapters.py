"""Adapters at a server, each by a name that holds its digest: one that reuses a name would serve stale weights.

Either the server is told of an adapter (``evaluate.adapters: load``) by vLLM's ``POST /v1/load_lora_adapter``, which
it has with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``; or its owner serves it already
(``listed``). Names at ``/v1/models`` are looked at before anything is asked. Nothing is unloaded: another run may use
the adapter, and what is loaded under its digest can't be wrong.

As vLLM 0.30 to 0.33 answers: 200 and a sentence when an adapter is loaded; 400 when one of that name is, which is as
good here; 404 where there is no such folder, or no such call; 500 where it can't be loaded, with the reason.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from mralign_core.config import EndpointConfig, EvaluateConfig
from mralign_core.config.sampling import VLLM_PROVIDER
from mralign_core.errors import ConfigError, UserError
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.llm.request import Reach
from mralign_core.models.adapter_files import StoredAdapter, rank_for_vllm, vllm_lora_room
from mralign_core.storage.scratch import part_name

LIST_TIMEOUT_S, LOAD_TIMEOUT_S = 30.0, 600.0
SHOWN_NAMES, SHOWN_CHARS = 10, 300


class ServerApi:
    """What is asked of a server beside completions.

    Args:
        api_base: its address, such as ``http://127.0.0.1:8000/v1``.
        api_key: its key; empty for none.
        timeout_s: for its list of models.
    """

    def __init__(self, api_base: str, api_key: str, timeout_s: float = LIST_TIMEOUT_S) -> None:
        self.base = api_base.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s

    def answers(self) -> bool:
        """Whether its list of models can be had."""
        with contextlib.suppress(EndpointUnavailableError):
            return self._request("GET", "/models", self._timeout_s).status_code == HTTPStatus.OK
        return False

    def names(self) -> list[str]:
        """The names under which it serves models and adapters.

        Raises:
            UserError: it does not say.
            EndpointUnavailableError: it is out of reach.
        """
        return list(self.longest_of_names())

    def longest_of_names(self) -> dict[str, int]:
        """Name → tokens that a prompt and its reply may have together; 0 where it does not say, as for adapters.

        Raises:
            UserError: it does not list what it serves.
            EndpointUnavailableError: it is out of reach.
        """
        response = self._request("GET", "/models", self._timeout_s)
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return {str(card["id"]): int(card.get("max_model_len") or 0) for card in response.json()["data"]}
        key = " It takes a key: set it in the environment." if response.status_code in (401, 403) else ""
        raise UserError(
            f"{self.base}/models does not list what is served there (HTTP {response.status_code}: "
            f"{response.text[:SHOWN_CHARS]!r}).{key} An adapter must be found in that list before it is asked"
        )

    def load(self, name: str, folder: Path) -> None:
        """Have an adapter loaded, as vLLM does.

        Raises:
            UserError: the server refuses.
            EndpointUnavailableError: it is out of reach.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        response = self._request("POST", "/load_lora_adapter", LOAD_TIMEOUT_S, json=body)
        if response.status_code == HTTPStatus.OK or "already been loaded" in response.text:
            return
        raise UserError(
            f"{self.base}/load_lora_adapter did not load {name} from {folder} (HTTP {response.status_code}: "
            f"{response.text[:SHOWN_CHARS]!r}). vLLM has this call with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment, and must see that folder: on another host, set "
            "evaluate.adapters_dir to a folder that both see under one path. Or serve the adapter yourself and set "
            "evaluate.adapters to 'listed'"
        )

    def _request(self, method: str, path: str, timeout_s: float, **options: Any) -> httpx.Response:
        try:
            return httpx.request(
                method, self.base + path, headers=self._headers, timeout=timeout_s, follow_redirects=False, **options
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EndpointUnavailableError(
                f"the server at {self.base} gave no answer to {method} {path} ({error!r}); run again once it is there"
            ) from error


class AdapterHost:
    """A server that is to answer with one adapter, or with the base model; makes sure of it before it is asked.

    Args:
        endpoint: the server, by its base model.
        section: how it comes to adapters.
        adapter: what to answer with; None for the base model.
        api_key: of the server, where the environment has one.
        reach: where it is, for a server that is started by the stage, which loads adapters.
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        section: EvaluateConfig,
        adapter: StoredAdapter | None,
        *,
        api_key: str = "",
        reach: Callable[[], Reach] | None = None,
    ) -> None:
        self.adapter, self._base, self._section, self._api_key, self._reach = adapter, endpoint, section, api_key, reach
        provider = endpoint.model.partition("/")[0]
        name = f"{provider}/{adapter.name}" if adapter else endpoint.model
        self.endpoint = endpoint.model_copy(update={"model": name})
        """The server, by what it is to answer with."""
        self.longest = 0
        """Tokens that a prompt and its reply may have together, as the server last said; 0 where it did not say."""

    def ready(self) -> Reach | None:
        """Make sure that the server has what it is to answer with; where it is, if the config does not say.

        Raises:
            UserError: it does not, and what to do about it.
            EndpointUnavailableError: it is out of reach.
        """
        reach = self._reach() if self._reach else None
        api = ServerApi(*(reach[:2] if reach else (self._base.api_base, self._api_key)))
        served = list(longest := api.longest_of_names())
        if _name(self._base) not in served:
            raise ConfigError(
                f"evaluate.endpoint.model {self._base.model!r}: the server at {api.base} serves no "
                f"{_name(self._base)!r}, but {_listed(served)}: write the provider and, behind it, the name that it has"
            )
        self.longest = longest[_name(self._base)]
        if self.adapter is None or self.adapter.name in served:
            return reach
        if self._reach is None and self._section.adapters == "listed":
            raise not_listed(self._base, self._section, [self.adapter], served)
        api.load(self.adapter.name, self._visible())
        if self.adapter.name not in (served := api.names()):
            raise UserError(
                f"the server at {api.base} said that it loaded {self.adapter.name}, and does not list it but "
                f"{_listed(served)}: where several servers stand behind one address, start each with the adapter and "
                "set evaluate.adapters to 'listed'"
            )
        return reach

    def _visible(self) -> Path:
        """The adapter's folder as the server sees it."""
        assert self.adapter
        if self._base.model.startswith(VLLM_PROVIDER):
            rank_for_vllm(self.adapter.folder)
        return visible_folder(self.adapter, self._section)


def require_listed(
    endpoint: EndpointConfig, section: EvaluateConfig, adapters: Sequence[StoredAdapter], api_key: str
) -> None:
    """Refuse a server that does not serve all these adapters already.

    Raises:
        ConfigError: it lacks some; under which names to serve them, and how.
        EndpointUnavailableError: it is out of reach.
    """
    served = ServerApi(endpoint.api_base, api_key).names()
    if missing := [adapter for adapter in adapters if adapter.name not in served]:
        raise not_listed(endpoint, section, missing, served)


def not_listed(
    endpoint: EndpointConfig, section: EvaluateConfig, missing: Sequence[StoredAdapter], served: Sequence[str]
) -> ConfigError:
    """The error of adapters that a server should have and does not."""
    room = vllm_lora_room(max(rank_for_vllm(adapter.folder) for adapter in missing))
    modules = " ".join(f"{adapter.name}={visible_folder(adapter, section)}" for adapter in missing)
    return ConfigError(
        f"evaluate.adapters is 'listed', and the server at {endpoint.api_base} lacks "
        f"{', '.join(adapter.name for adapter in missing)}; it serves {_listed(served)}. Serve them under exactly "
        f"these names, which hold the digests of their weights; with vLLM: vllm serve … --enable-lora "
        f"--max-lora-rank {room} --lora-modules {modules}"
    )


def visible_folder(adapter: StoredAdapter, section: EvaluateConfig) -> Path:
    """An adapter's folder as the server sees it: in the store, or copied to where it can see it, whole or not at all.

    Raises:
        ConfigError: it can't be copied there.
    """
    if not section.adapters_dir:
        return adapter.folder.absolute()
    folder = Path(section.adapters_dir).absolute() / adapter.name
    part = folder.parent / f".{part_name()}"
    try:
        if not folder.exists():
            shutil.copytree(adapter.folder, part)
            part.rename(folder)
    except OSError as error:
        if not folder.exists():  # else another process was first
            raise ConfigError(f"evaluate.adapters_dir {section.adapters_dir!r} can't be written to: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _name(endpoint: EndpointConfig) -> str:
    """What a server knows a model as."""
    return endpoint.model.partition("/")[2]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{', '.join(names[:SHOWN_NAMES])}{more}" if names else "nothing"


class OwnServer(NamedTuple):
    """A server that a stage starts."""

    name: str
    """Under which it serves the base model."""
    reach: Callable[[], Reach]
    """Starts it, where it does not run, and says where it is."""
