"""What may stand where a config wants a URL, a path or the root of a store, and what is said of the rest."""

import doctest
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from mralign_core import addresses, redaction
from mralign_core.addresses import checked_root, checked_url, expanded
from mralign_core.config import EndpointConfig, RunConfig, Section, parse_config
from mralign_core.errors import ConfigError


@pytest.mark.parametrize("module", [addresses, redaction])
def test_examples_hold(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    "url", ["", "http://127.0.0.1:8000/v1", "https://host", "http://[::1]:80/v1", "HTTPS://Host.example/a/b/"]
)
def test_urls_that_are_accepted(url):
    assert checked_url(url) == url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:9000", "such as http://localhost:9000"),
        ("gpu-3/v1", "such as http://gpu-3/v1"),
        ("//gpu-3:80", "such as http://gpu-3:80"),
        ("ftp://host", "starts with http:// or https://"),
        ("http:/host", "starts with http:// or https://"),
        ("http://", "names no host"),
        ("http://:80/v1", "names no host"),
        ("http://host:99999", "port"),
        ("http://host:port", "port"),
        ("http://[::1", "can't be read"),
        ("http://ho st", "no blanks"),
        ("http://host\u200b/v1", "no invisible"),
        ("http://host/v1\n", "no blanks"),
        ("https://ada:hunter22@host/v1", "no user or password"),
        ("https://sk-0123456789@host/v1", "no user or password"),
        ("ada:hunter22@host/v1", "starts with http:// or https://"),
        ("https://host/v1?api-key=hunter22", "environment"),
        ("host/v1?api-key=hunter22", "starts with http:// or https://"),
        ("https://host/v1#hunter22", "environment"),
        ("https://host?", "environment"),
    ],
)
def test_urls_that_are_refused(url, says):
    with pytest.raises(ValueError) as caught:
        checked_url(url)
    assert says in str(caught.value)
    assert "hunter22" not in str(caught.value)


def url_fields(section: type[Section] = RunConfig, path: str = "") -> list[str]:
    """Fields of all sections, nested ones included, whose names say that a URL is meant."""
    found = []
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        found += [one for kind in inner for one in url_fields(kind, f"{path}{name}.")]
        if ("url" in name.split("_") or name.endswith("api_base")) and not inner:
            found.append(f"{path}{name}")
    return found


def test_every_url_of_the_config_is_checked_and_its_secret_not_repeated():
    fields = [name for name in url_fields() if "panels" not in name]
    assert {"storage.endpoint_url", "annotate.annotator_a.api_base", "generate.endpoint.api_base"} <= set(fields)
    for name in fields:
        *sections, last = name.split(".")
        values: dict[str, Any] = {last: "https://host/v1?api-key=hunter22hunter22"}
        if last == "api_base":
            values["model"] = "openai/m"
        for section in reversed(sections):
            values = {section: values}
        if name.startswith("generate.endpoint"):
            values["generate"]["sampler"] = "endpoint"
        if name.startswith("induce.embedding"):
            values["induce"]["embedder"] = "endpoint"
        with pytest.raises(ConfigError, match="environment") as caught:
            parse_config({"questions": {"train": "q.jsonl"}, **values})
        assert "hunter22" not in str(caught.value), name


def test_the_form_of_a_deployment_refuses_a_secret_before_it_is_stored():
    schema = EndpointConfig.model_json_schema()["properties"]["api_base"]
    pattern = TypeAdapter(Annotated[str, Field(pattern=schema["pattern"])])
    for good in ("", "http://127.0.0.1:8000/v1", "https://host"):
        pattern.validate_python(good)
    for bad in ("host:80", "https://u:p@host", "https://host/v1?key=x", "https://host#x"):
        with pytest.raises(ValidationError):
            pattern.validate_python(bad)


@pytest.mark.parametrize(
    ("root", "means"),
    [
        (".mralign/store", ".mralign/store"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("file:///data/store", "/data/store"),
        ("file:/data/store", "/data/store"),
        ("a folder/with blanks", "a folder/with blanks"),
    ],
)
def test_roots_that_are_accepted(root, means):
    assert checked_root(root) == means


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("s3:/bucket/x", "write s3://bucket/x"),
        ("s3:bucket/x", "write s3://bucket/x"),
        ("S3://bucket/x", "write s3://bucket/x"),
        ("s3a://bucket/x", "write s3://bucket/x"),
        ("s3:///bucket/x", "write s3://bucket/x"),
        ("s3://bucket/a//x", "write s3://bucket/a/x"),
        ("s3://bucket/../x", "mean nothing in a bucket"),
        ("s3://", "no bucket's name"),
        ("s3://bu cket/x", "no bucket's name"),
        ("s3://AKIA:hunter22@bucket/x", "no credentials"),
        ("gs://bucket/x", "'gs://'"),
        ("https://host/bucket", "'https://'"),
        ("file://store", "three slashes"),
        ("", "name a folder"),
        ("  ", "name a folder"),
        ("~no-such-user/store", "no home folder"),
        ("a\0b", "null character"),
    ],
)
def test_roots_that_are_refused(root, says):
    with pytest.raises(ValueError) as caught:
        checked_root(root)
    assert says in str(caught.value)
    assert "hunter22" not in str(caught.value)


def test_a_home_folder_can_be_written_short_in_every_path_of_the_config(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse_config(
        {
            "storage": {"root": "~/store"},
            "model": {"path": "~/model", "family": "~/family.yaml"},
            "questions": {"train": "~/q.jsonl", "eval": {"name": "sciq", "path": "~/sciq"}},
            "generate": {"source": "traces", "traces_path": "~/t.jsonl"},
            "annotate": {"label_set": "~/labels.yaml"},
            "train": {"accelerate_config": "~/ddp.yaml", "log_folder": "~/curves"},
            "compare": {"sheets": ["~/sheet.csv"]},
            "induce": {"embedder": "~/bge"},
            "distil": {"labels": "~/labelled.jsonl", "encoder": "~/bge"},
        }
    )
    assert "~" not in config.model_dump_json()
    assert config.model.path == str(tmp_path / "model") and config.questions.train[0].path == str(tmp_path / "q.jsonl")
    assert expanded("a~b") == "a~b"
