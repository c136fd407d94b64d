"""What the Hub refuses, in one sentence with the fix. No message contains a token."""

import re
from contextlib import suppress

from distill.errors import InputError, printable
from distill.recipe.hub_names import HubModel

_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}")
_LOG_IN = "run `hf auth login`, or set HF_TOKEN"
_NETWORK = (
    "fix the way to the Hub (HF_ENDPOINT, proxies), or set HF_HUB_OFFLINE=1 to use only what is in"
    " the cache (HF_HOME)"
)


def redacted(text: str) -> str:
    """Returns a text without anything that is a token, or looks like one."""
    with suppress(Exception):  # a token that cannot be read is not in the text
        from huggingface_hub import get_token

        if token := get_token():
            text = text.replace(token, "hf_(redacted)")
    return _TOKEN.sub("hf_(redacted)", text)


def reason_of(error: BaseException) -> str:
    """Returns the first line that says why, of an error of huggingface_hub or its HTTP library."""
    message = getattr(error, "server_message", None) or str(error)
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return redacted(printable(lines[0] if lines else type(error).__name__))[:300].rstrip(".")


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status of an error; None if there was no answer."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def is_network_error(error: BaseException) -> bool:
    """Returns whether no answer came: of the HTTP libraries of all versions of huggingface_hub.

    Not the errors of local files, which are OSErrors too.
    """
    library = type(error).__module__.split(".")[0]
    unanswered = library in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
    cause = error.__cause__ or error.__context__
    return (
        (unanswered and status_of(error) is None)
        or isinstance(error, ConnectionError | TimeoutError)
        or (isinstance(error, RuntimeError) and cause is not None and is_network_error(cause))
    )


def read_fault(error: BaseException, model: HubModel, key: str) -> InputError:
    """Returns the message for a model that cannot be read.

    Args:
        key: the recipe key, option or argument that names it.
    """
    from huggingface_hub import constants, errors

    page, what = f"{constants.ENDPOINT}/{model.repo}", f"{key}: {model}"
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{what}: accept its terms at {page}, then {_LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"{what}: there is no revision {model.revision!r}: name a branch, tag or commit of"
            f" {page}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"{what}: there is no such model, or it is private: fix the name, or for a private"
            f" model {_LOG_IN}"
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return InputError(
                f"{what}: is not in the cache (HF_HOME), and HF_HUB_OFFLINE=1 forbids to download"
                " it: run once with network access, or unset HF_HUB_OFFLINE"
            )
        cause = error.__cause__ or error
        if status_of(cause) is not None:
            return read_fault(cause, model, key)
        return InputError(f"{what}: cannot be reached ({reason_of(cause)}): {_NETWORK}")
    if isinstance(error, errors.EntryNotFoundError):
        return InputError(
            f"{what}: is no model of timm: it holds no config.json with model.safetensors or"
            " pytorch_model.bin"
        )
    return _answer_fault(error, what)


def write_fault(error: BaseException, repo: str, then: str = "nothing was changed") -> InputError:
    """Returns the message for a repository that cannot be written.

    Args:
        then: what that leaves, for the end of the message.
    """
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    status = status_of(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InputError(f"{repo}: HF_HUB_OFFLINE=1 forbids to publish: unset it; {then}")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{repo}: there is no such branch (see {page}/tree); {then}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"{repo}: there is no such repository, or it is private and your token may not see it;"
            f" {then}"
        )
    if status == 403:
        return InputError(
            f"{repo}: your token may not write there ({reason_of(error)}): use a token with write"
            f" access to it, or another owner; {then}"
        )
    if status in (409, 412):
        return InputError(
            f"{repo}: another client changed it at the same time ({reason_of(error)}): look at"
            f" {page}/commits, and run the same command again; {then}"
        )
    return InputError(f"{_answer_fault(error, repo)}; {then}")


def _answer_fault(error: BaseException, what: str) -> InputError:
    """Returns the message for what reading and writing have in common."""
    status = status_of(error)
    if isinstance(error, UnicodeEncodeError):  # HTTP headers, of which the token is one, are ASCII
        return InputError(
            f"{what}: your token is malformed: it has characters that no token has: {_LOG_IN}"
        )
    if status == 401:
        return InputError(f"{what}: the Hub does not accept your token: {_LOG_IN}")
    if status == 403:
        return InputError(f"{what}: your token may not read it ({reason_of(error)}): {_LOG_IN}")
    if status == 429:
        return InputError(f"{what}: the Hub answers 429, too many requests: try again later")
    if status is not None:
        return InputError(f"{what}: the Hub answers {status} ({reason_of(error)}): try again later")
    if is_network_error(error):
        return InputError(
            f"{what}: the connection to the Hub failed ({reason_of(error)}): {_NETWORK}"
        )
    return InputError(f"{what}: {type(error).__name__}: {reason_of(error)}")
