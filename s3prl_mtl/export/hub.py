"""`--push`: upload an export to a repository of Hugging Face, with huggingface_hub's own log-in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError, error_summary, require_packages

logger = logging.getLogger(__name__)

MISTAKES = (TypeError, AttributeError, LookupError, NameError, AssertionError)
"""Errors of a program, not of the hub or the network: they stay tracebacks."""


def check_login(repository: str) -> None:
    """Check the name of a repository, and that huggingface_hub is logged in, before the work.

    Raises:
        UserError: it is not installed or not logged in, the name is malformed, or the hub cannot be
            reached.
    """
    hub = _import_hub(repository)
    from huggingface_hub.utils import validate_repo_id

    with _hub_errors(repository, None):
        validate_repo_id(repository)
        hub.HfApi().whoami()


def push(
    files: list[Path], repository: str, private: bool = False, revision: str | None = None
) -> str:
    """Upload files, or a folder, as one commit; the repository and the branch are created.

    Args:
        files: a folder, whose content is uploaded; or files.
        repository: `NAME`, or `USER_OR_ORGANISATION/NAME`.
        private: where the repository is created.
        revision: a branch; None for the default one.

    Returns:
        the address of the commit.

    Raises:
        UserError: huggingface_hub is not installed or not logged in, has no right to write there,
            or the hub cannot be reached.
    """
    hub = _import_hub(repository)
    api = hub.HfApi()
    with _hub_errors(repository, files):
        # None leaves the visibility to the defaults of the user or organisation.
        name = api.create_repo(repository, private=private or None, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        if files[0].is_dir():
            pairs = [
                (path.relative_to(files[0]).as_posix(), path)
                for path in sorted(files[0].rglob("*"))
                if path.is_file()
            ]
        else:
            pairs = [(path.name, path) for path in files]
        additions = [
            hub.CommitOperationAdd(path_in_repo=place, path_or_fileobj=path)
            for place, path in pairs
        ]
        commit = api.create_commit(
            name, additions, commit_message="Upload an export of s3prl-mtl", revision=revision
        )
    return str(commit.commit_url)


def _import_hub(repository: str) -> Any:
    require_packages(["huggingface_hub"], f"--push {repository}", "hub")
    import huggingface_hub

    return huggingface_hub


@contextmanager
def _hub_errors(repository: str, files: list[Path] | None) -> Iterator[None]:
    """Raise a `UserError` for errors of huggingface_hub."""
    from huggingface_hub import errors

    try:
        yield
    except (UserError, *MISTAKES):
        raise
    except Exception as error:  # httpx and Xet have kinds of their own
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.HFValidationError):
            what, fix, code = "is malformed", "Give USER/NAME.", "invalid-value"
        elif isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
            what = "needs a log-in"
            fix, code = "Log in once: `hf auth login`; or set HF_TOKEN.", "hub-refused"
        elif status in (403, 404):
            what = "does not let you write"
            fix = "Check the name, and that your token may write there."
            code = "hub-refused"
        elif status is not None and 400 <= status < 500:
            what, fix, code = "refused the upload", "Correct what it names.", "hub-refused"
        else:
            what, code = "could not be reached", "hub-refused"
            fix = "Check the network (and HF_HUB_OFFLINE, HF_ENDPOINT)."
        if files is not None:
            fix += (
                " The export is there; upload it with "
                + " and ".join(f"`hf upload {repository} {path}`" for path in files)
                + "."
            )
        raise UserError(
            f"The repository {repository} {what} ({error_summary(error)}).",
            where=f"--push {repository}",
            fix=fix,
            code=code,
        ) from error
