"""Puts a folder into a repository of the model hub, in one commit: what is there is whole, or not there.

That is why ``HfApi.create_commit`` is called: ``upload_folder``, which huggingface_hub's ``ModelHubMixin`` calls, may
commit a part of the files at a time.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from loragen_infer.errors import LoragenInferError, reason_of
from loragen_infer.models.locate import hub_is_forbidden

__all__ = ["ADAPTER_FILES", "check_push", "push_folder"]

ADAPTER_FILES = frozenset({"README.md", "adapter_config.json", "adapter_model.safetensors"})
"""What an adapter consists of; nothing that lies in its folder by chance."""


def check_push(repo_id: str) -> None:
    """Find out before the work what keeps anything from being pushed to ``repo_id``; contacts nobody.

    Raises:
        LoragenInferError: The hub may not be asked, what is needed is not installed, or the name is none.
    """
    if hub_is_forbidden():
        raise LoragenInferError(f"HF_HUB_OFFLINE forbids the hub, so nothing is pushed to {repo_id}; unset it.")
    try:
        import httpx2  # noqa: F401
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise LoragenInferError(
            f"Pushing to the hub needs {error.name}; install it with: pip install 'loragen-infer[hub]'."
        ) from error
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise LoragenInferError(f"{repo_id!r} cannot be a repository's name; give one such as user/name.") from error


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    files: Collection[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str,
    token: str | None = None,
) -> str:
    """Push the model or adapter in ``folder`` to ``repo_id``, made where it is missing, and return the commit's URL.

    Args:
        folder: Where it lies.
        repo_id: ``user/name``, or the name alone for the one who is logged in.
        files: Names of the files that are pushed; None: all.
        private: Whether a repository that is made is private; None: as the hub has it for the user.
        revision: The branch to push to, which is made where it is missing; None: the main one.
        commit_message: What the commit says.
        token: What lets one write; None: that of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        LoragenInferError: As :func:`check_push`, or the hub refuses or cannot be reached. Nothing is there by half.
    """
    check_push(repo_id)
    from huggingface_hub import CommitOperationAdd, HfApi

    pushed = sorted(path for path in folder.iterdir() if path.is_file() and (files is None or path.name in files))
    api = HfApi(token=token)
    with _refusals(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:  # one that exists stays as it is
            raise LoragenInferError(
                f"{repo_id} is there already and everyone can read it; make it private on the hub, or choose another "
                "name."
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in pushed],
            commit_message=commit_message,
            revision=revision,
        )
    return commit.commit_url


@contextmanager
def _refusals(repo_id: str) -> Iterator[None]:
    """Make one sentence of what the hub refuses in the block."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        # Without the right to see a repository the hub says that it is not there.
        way_out = "give a token that may write there (hf auth login, HF_TOKEN)"
        if error.response.status_code == 429 or error.response.status_code >= 500:
            way_out = "try again later"
        elif error.response.status_code not in (401, 403, 404):
            way_out = "mend what it names"
        reason = error.server_message or reason_of(error)
        raise LoragenInferError(f"The hub refuses the push to {repo_id}: {reason}; {way_out}.") from error
    except (httpx2.HTTPError, OSError) as error:
        raise LoragenInferError(
            f"The hub cannot be reached for the push to {repo_id}: {reason_of(error)}; try again."
        ) from error
    except (RuntimeError, ValueError) as error:  # of the storage's client, and of a response that is none
        raise LoragenInferError(f"The push to {repo_id} failed: {reason_of(error)}; try again.") from error
