"""One HTTP request for a file or a part of it, and what its answer means. It uses the standard
library, so proxies come from the environment.
"""

import base64
import functools
import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from distill.data.stream.byte_stream import PIECE_BYTES, SLOW_TIMEOUTS, ByteStream, TransientError
from distill.data.stream.deadline import Deadline, http_handlers
from distill.data.stream.names import display_url
from distill.errors import InputError

_AGENT = "vanillakd"
# Statuses that may pass, besides every 5xx.
_PASSING = {408, 425, 429}

_HUB = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/(convert|pr)/[^/]+|[^/]+))?/(?P<file>.+)"
)


@dataclass(frozen=True)
class Address:
    """Where to send a request. display_url: for messages, without passwords and signatures. repo:
    the Hub's OWNER/NAME.
    """

    url: str
    headers: Mapping[str, str]
    display_url: str
    repo: str | None = None


def address_of(url: str) -> Address:
    """The address of http(s):// or hf://datasets/OWNER/NAME[@REVISION]/FILE, the latter with the
    user's token.

    Raises:
        InputError: not such a URL; it is on the Hub and HF_HUB_OFFLINE is set.
    """
    if url.startswith("hf://"):
        return _hub_address(url)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(
            f"{url.rpartition('@')[2].partition('?')[0]}: not a URL ({error}): fix it"
        ) from error
    userinfo, _, host = parts.netloc.rpartition("@")
    if not host:
        raise InputError(f"{display_url(url)}: a URL without a host: write http://HOST/PATH")
    headers = {"User-Agent": _AGENT}
    if userinfo:
        headers["Authorization"] = "Basic " + base64.b64encode(unquote(userinfo).encode()).decode()
    # What is already quoted stays; blanks and letters beyond ASCII are quoted.
    path, query = (quote(part, safe="/%:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query))
    plain = urlunsplit((parts.scheme, host, parts.path, "", ""))
    return Address(urlunsplit((parts.scheme, host, path, query, "")), headers, plain)


def _hub_address(url: str) -> Address:
    from huggingface_hub import constants, get_token, hf_hub_url

    match = _HUB.fullmatch(url)
    if match is None:
        raise InputError(
            f"{url} names no file of the Hub: write hf://datasets/OWNER/NAME/FILE, or"
            " OWNER/NAME@REVISION"
        )
    if constants.HF_HUB_OFFLINE:
        raise InputError(
            f"{url} lies on the Hub and HF_HUB_OFFLINE is set: unset it, or give a local path"
        )
    revision = match["revision"]
    resolved = hf_hub_url(
        match["repo"],
        match["file"],
        repo_type="dataset",
        revision=None if revision is None else unquote(revision),
    )
    # huggingface_hub's build_hf_headers may send a request of its own to the Hub (seen with 2.4).
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    headers = {
        "User-Agent": _AGENT,
        **({} if token is None else {"Authorization": f"Bearer {token}"}),
    }
    return Address(resolved, headers, url, match["repo"])


@contextmanager
def open_web(
    address: Address, start: int, end: int | None, version: str | None, timeout_s: float
) -> Iterator[ByteStream]:
    """Bytes [start, end) of a file; all of it if the server has no ranges or the file is no longer
    `version`.

    Raises:
        TransientError: what another try may fix.
        InputError: what does not.
    """
    headers = {"Accept-Encoding": "identity", **address.headers}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if version is not None and not version.startswith("W/"):
            headers["If-Range"] = version
    deadline = Deadline(timeout_s, SLOW_TIMEOUTS * timeout_s)
    try:
        response = _opener(deadline).open(
            urllib.request.Request(address.url, headers=headers), timeout=timeout_s
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416:
                raise _refused(address, error.code, str(error.reason), error.headers) from error
            response, total = None, _content_range(error.headers)[1]
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise _unanswered(address, error, timeout_s) from error
    if response is None:  # nothing lies in the range
        yield ByteStream(start, total, None, ())
        return
    with response:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise InputError(
                f"{address.display_url}: the server sends it compressed ({encoding}), although"
                " asked not to: serve it as it is"
            )
        at, total = 0, response.length
        if response.status == 206:
            first, total = _content_range(response.headers)
            if first is None:
                raise TransientError("the server answers with a part that it does not name")
            at = first
        yield ByteStream(at, total, _version(response.headers), _pieces(response, deadline))


def _pieces(response: http.client.HTTPResponse, deadline: Deadline) -> Iterator[bytes]:
    promised, received = response.length, 0
    while True:
        deadline.renew()
        try:
            # read1 returns what has arrived. read(n) waits for n bytes, and loses them when the
            # connection breaks meanwhile.
            piece = response.read1(PIECE_BYTES)
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
        ) as error:  # ValueError: a damaged chunk length
            raise TransientError(_reason(error, deadline.timeout_s)) from error
        if not piece:
            break
        received += len(piece)
        yield piece
    if promised is not None and received < promised:
        raise TransientError(f"the answer ended after {received} of {promised} bytes")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only, and sends credentials to the first host only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.HTTPError(
                req.full_url, code, f"redirect to {display_url(newurl)}", headers, fp
            )
        follow = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if follow is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            for name in (
                "Authorization",
                "Proxy-authorization",
            ):  # the latter is set again where the way needs it
                follow.remove_header(name)
        return follow


@functools.cache
def _tls() -> ssl.SSLContext:
    """Loading the certificates takes tens of milliseconds, so it is done once a process."""
    return ssl.create_default_context()


def _opener(deadline: Deadline) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects, *http_handlers(deadline, _tls()))


def _version(headers: Message) -> str | None:
    """The strongest mark of the file's version in the headers: strong ETag, Last-Modified, weak
    ETag.
    """
    tag: str | None = headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    modified: str | None = headers.get("Last-Modified")
    return modified or tag


def _content_range(headers: Message) -> tuple[int | None, int | None]:
    """(first byte, bytes of the whole file) of Content-Range; None for what it does not contain."""
    match = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip()
    )
    if match is None:
        return None, None
    first, total = match.groups()
    return None if first is None else int(first), None if total == "*" else int(total)


def _asked_wait_s(headers: Message) -> float | None:
    """Retry-After in seconds or as a date, or the Hub's RateLimit: "api";r=0;t=SECONDS."""
    given: str | None = headers.get("Retry-After")
    if given is None:
        match = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
        return float(match[1]) if match else None
    if given.strip().isdecimal():
        return float(given)
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except ValueError:
        return None


def _refused(address: Address, status: int, reason: str, headers: Message) -> Exception:
    """The error for an HTTP status: TransientError if another try may help, else InputError with
    what to change.
    """
    answer = f"the server answers {status} {reason}".rstrip()
    if status in _PASSING or status >= 500:
        return TransientError(answer, _asked_wait_s(headers))
    if address.repo is not None:
        return InputError(
            f"{address.display_url}: {_hub_refusal(address, status, headers) or answer}"
        )
    if status in (401, 403):
        return InputError(
            f"{address.display_url}: {answer}: it wants other credentials, or a URL that is still"
            " valid; http://USER:PASSWORD@HOST/... gives some"
        )
    if status == 407:
        return InputError(
            f"{address.display_url}: the proxy wants a password: fix HTTP_PROXY and HTTPS_PROXY"
        )
    if status in (404, 410):
        return InputError(
            f"{address.display_url}: {answer}: there is no such file, so fix the path"
        )
    return InputError(
        f"{address.display_url}: {answer}: another try would not change that, so fix the URL or the"
        " server"
    )


def _hub_refusal(address: Address, status: int, headers: Message) -> str | None:
    """The message for a refusal by the Hub, which answers 401 to anonymous requests for gated,
    private and missing repositories alike; X-Error-Code says which of them it is.
    """
    from huggingface_hub import constants

    known = "Authorization" in address.headers
    login = "" if known else ", and log in with `hf auth login` or set HF_TOKEN"
    page = f"{constants.ENDPOINT}/datasets/{address.repo}"
    match headers.get("X-Error-Code"):
        case "GatedRepo":
            of_token = (
                " with the account of your token (which must be allowed to read gated repositories)"
                if known
                else ""
            )
            return f"the repository is gated: accept its terms at {page}{of_token}{login}"
        case "RevisionNotFound":
            return f"{address.repo} has no such revision: see {page}/tree/main"
        case "RepoNotFound":
            return (
                f"there is no data set {address.repo} on the Hub, or it is not yours to read: fix"
                f" the name{login}"
            )
    match status:
        case 401 | 403:
            token = (
                "your token is not valid or may not read it: `hf auth whoami` shows it"
                if known
                else "no token is set"
            )
            return f"the Hub answers {status}, {token}{login}"
        case 404 | 410:
            return f"the Hub answers {status}, there is no such file: see {page}/tree/main"
    return None


def _unanswered(address: Address, error: Exception, timeout_s: float) -> Exception:
    """The error for a request without an answer."""
    cause: Any = error.reason if isinstance(error, urllib.error.URLError) else error
    host = urlsplit(address.url).netloc
    if isinstance(cause, UnicodeError | http.client.InvalidURL):
        return InputError(
            f"{address.display_url}: not a URL that can be asked for ({cause}): fix it"
        )
    # EAI_AGAIN, a name server that does not answer, may pass.
    if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
        return InputError(
            f"{address.display_url}: no host {host} is known, or none that it redirects to"
            f" ({cause.strerror}): fix its name, or the network of this machine"
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return InputError(
            f"{address.display_url}: the certificate of {host} is not trusted here"
            f" ({cause.verify_message}): set SSL_CERT_FILE to a file with the right authority"
        )
    return TransientError(_reason(cause, timeout_s))


def _reason(error: object, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no byte came within {timeout_s:g} s"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended within the answer"
    return str(error) or type(error).__name__
