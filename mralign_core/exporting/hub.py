"""An export on a hub, for those who ask for it."""

from __future__ import annotations

import shlex
from pathlib import Path

from mralign_core.errors import ConfigError

HUB_REMEDY = "log in (hf auth login, or HF_TOKEN), and name a repository that you may write, such as my-org/my-traces"


def upload_again(folder: Path, repository: str) -> str:
    """The command that uploads an export which is written already.

    Example:
        >>> upload_again(Path("my traces"), "me/my-traces")
        "hf upload me/my-traces 'my traces' . --repo-type dataset --private"
    """
    return shlex.join(["hf", "upload", repository, str(folder), ".", "--repo-type", "dataset", "--private"])


def push_data_set(folder: Path, repository: str) -> str:
    """Upload an export as a data set; a repository that is not there yet is made, as a private one.

    Args:
        folder: of the export.
        repository: ``owner/name``.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the hub refuses it, or can't be reached; what was written stays in the folder.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, repo_type="dataset", folder_path=folder, commit_message="Traces of MR-ALIGN"
        )
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
        raise ConfigError(
            f"--push-to-hub {repository}: {type(error).__name__}: {error!s:.300}. The export is in {folder}; "
            f"{HUB_REMEDY}. Then upload it as it is: {upload_again(folder, repository)}"
        ) from error
    return str(commit.commit_url)
