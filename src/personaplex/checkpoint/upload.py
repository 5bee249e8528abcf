"""To the Hub: asked for permission before the work, and every refusal one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from personaplex.errors import OutputError, UsageError


def check_permission(repo: str) -> None:
    """Raise OutputError unless the token found on this machine may write to `repo`, UsageError for no such name."""
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo):
        raise UsageError(f"{repo} is no repository on the Hub: owner/name is")
    with _in_our_words(repo):
        about = HfApi().whoami()
    owner, _ = repo.split("/")
    owners = {about["name"], *(org["name"] for org in about.get("orgs", []))}
    if owner not in owners:
        raise OutputError(f"{repo} cannot be written: you are {about['name']} on the Hub, and no member of {owner}")
    if about.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise OutputError(
            f"{repo} cannot be written: your token may only read; `hf auth login` with one that may write"
        )


def upload(folder: Path, repo: str) -> str:
    """Upload a model folder to `repo`, made if need be; returns where it is. Raises OutputError."""
    from huggingface_hub import HfApi

    with _in_our_words(repo):
        url = HfApi().create_repo(repo, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Converted with personaplex")
    return str(url)


@contextmanager
def _in_our_words(repo: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise OutputError(f"{repo} cannot be written: there is no token on this machine; `hf auth login`") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise OutputError(
                f"{repo} cannot be written: the Hub refused your token ({status}); `hf auth login` with one that may"
            ) from error
        raise OutputError(f"{repo} cannot be written: {str(error).splitlines()[0]}") from error
    except Exception as error:  # without a network: whatever the client's HTTP library of the day raises
        raise OutputError(f"{repo} cannot be written: the Hub cannot be reached ({error})") from error
