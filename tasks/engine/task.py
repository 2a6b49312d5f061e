"""Prefect tasks that have an artifact made: declared with the function that builds it.

:func:`artifact` makes a Prefect task of a build function. Its arguments are the config, the artifacts it is made from
and its part, such as ``train_adapter(config, model=…, candidates=…, variant="sft")``; what it does not read under this
config may be None.
"""

from __future__ import annotations

import errno
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
from botocore.exceptions import BotoCoreError
from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from mralign_core.config import RunConfig
from mralign_core.errors import StoreUnavailableError, UserError
from mralign_core.redaction import redact, redact_error
from mralign_core.storage import ArtifactRef
from tasks.engine.graph import Artifact, Part, register
from tasks.engine.run import Build, Produced, Work, span
from tasks.engine.session import session

CAN_PASS = (OSError, httpx.TransportError, BotoCoreError)


class StageTask(Task[..., ArtifactRef]):
    """A task that produces one artifact, and ends in a state named "Cached" when the artifact was already there."""

    def __init__(self, artifact: Artifact, options: Sequence[str] = (), **prefect_options: Any) -> None:
        self.artifact = artifact
        self._options = tuple(options)

        def body(*args: Any, **kwargs: Any) -> Any:
            produced = self.produce(*args, **kwargs)
            return Completed(name="Cached", data=produced.ref) if produced.was_cached else produced.ref

        functools.update_wrapper(body, artifact.build)
        self._signature = _signature(artifact, self._options)
        # Prefect reads the signature: it is that of a call, not of the build function.
        vars(body).pop("__wrapped__")
        vars(body)["__signature__"] = self._signature
        super().__init__(body, **prefect_options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        returned = super().__call__(*args, **kwargs)
        return returned.result() if isinstance(returned, State) else returned

    def run_here(self, *args: Any, **kwargs: Any) -> ArtifactRef:
        """Have the artifact made in this process, with no server, for debugging."""
        return self.produce(*args, **kwargs).ref

    def work(self, *args: Any, **kwargs: Any) -> Work:
        """What a call with these arguments would make.

        Raises:
            TypeError: an input is missing that is read under this config; a programming error.
        """
        return self._bind(args, kwargs)[0]

    def produce(self, *args: Any, **kwargs: Any) -> Produced:
        """Have the artifact made, if it is not there; what is raised holds no secret, since Prefect stores it."""
        work, options = self._bind(args, kwargs)
        try:
            with session():
                return work.produce(options)
        except Exception as error:
            if redact_error(error):
                raise
            text = redact(f"{type(error).__name__}: {error}")
        raise RuntimeError(text)

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Work, dict[str, Any]]:
        given = self._signature.bind(*args, **kwargs)
        given.apply_defaults()
        values = given.arguments
        config, part = values["config"], {name: values[name] for name in self.artifact.part}
        inputs = _inputs(self.artifact, config, part, values)
        options = {name: values[name] for name in self._options}
        return Work(self.artifact, config, inputs, part, tuple(values.get("rows", ()))), options


def _signature(artifact: Artifact, options: Sequence[str]) -> inspect.Signature:
    """The arguments of a call: the config, the inputs, the fields of the part, and what changes no result.

    After an input that may be missing all others are named.
    """
    required, optional = inspect.Parameter.empty, None
    parameters: list[tuple[str, Any, Any]] = [("config", RunConfig, required)]
    has_optional = False
    for each in artifact.inputs:
        has_optional = has_optional or each.may_be_missing
        parameters.append((each.argument, Any, optional if has_optional else required))
    num_by_place = len(parameters)
    parameters += [(name, Any, required) for name in (*artifact.part, *(["rows"] if artifact.is_shard else []))]
    parameters += [(name, Any, optional) for name in options]
    by_place, by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    kinds = [by_name if has_optional and number >= num_by_place else by_place for number in range(len(parameters))]
    return inspect.Signature(
        [
            inspect.Parameter(name, kind, default=default, annotation=annotation)
            for (name, annotation, default), kind in zip(parameters, kinds, strict=True)
        ]
    )


def _inputs(artifact: Artifact, config: RunConfig, part: Part, values: Mapping[str, Any]) -> dict[str, ArtifactRef]:
    """The inputs that are read under a config, of those that a call gives.

    Raises:
        TypeError: one is missing.
    """
    inputs: dict[str, ArtifactRef] = {}
    for each in artifact.inputs:
        given = values[each.argument]
        if each.each is not None:
            inputs |= {f"{each.name}:{which}": ref for which, ref in (given or {}).items()}
        elif each.when(config, part):
            if given is None:
                raise TypeError(f"artifact {artifact.name!r} is made from {each.name!r}, which is not given")
            inputs[each.role(each.name)] = given
    return inputs


def as_arguments(inputs: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """Artifacts by name as the arguments of a task.

    Example:
        >>> list(as_arguments({"thinking-draws": ArtifactRef(uri="x", stage="x", key="x", sha256="x")}))
        ['thinking_draws']
    """
    return {name.replace("-", "_"): ref for name, ref in inputs.items()}


def artifact(
    name: str, *, stage: str, options: Sequence[str] = (), run_name: str = "", **declared: Any
) -> Callable[[Build], StageTask]:
    """Declare an artifact, and make a Prefect task of the function that builds it.

    The task has the function's name. It retries, with exponential back-off and jitter, what can pass (I/O, time-outs),
    never what can't (bad config, bad data, a bug).

    Args:
        name: the artifact's name.
        stage: which makes it.
        options: arguments of the task that change no result.
        run_name: template of a task run's name, such as ``train {variant}``.
        declared: the other fields of :class:`~tasks.engine.graph.Artifact`.
    """

    def decorate(build: Build) -> StageTask:
        node = Artifact(name, stage, build, **declared)
        register(node)
        return StageTask(
            node,
            options,
            name=build.__name__,
            task_run_name=functools.partial(_run_name, run_name) if run_name else build.__name__,
            retries=3,
            retry_delay_seconds=exponential_backoff(backoff_factor=2),
            retry_jitter_factor=1.0,
            retry_condition_fn=is_worth_a_retry,
            persist_result=False,
            cache_policy=NO_CACHE,
        )

    return decorate


def _run_name(template: str) -> str:
    """A task run's name in the UI, from its arguments."""
    values = dict(task_run.parameters)
    if rows := values.get("rows"):
        values["rows"] = span(rows)
    return template.format(**values)


def is_worth_a_retry(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task is worth another attempt."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, StoreUnavailableError):
        return True
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return False  # nobody frees a disk by waiting
    if isinstance(error, UserError | FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError):
        return False
    return isinstance(error, CAN_PASS)
