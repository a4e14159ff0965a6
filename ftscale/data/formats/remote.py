"""Files of other machines, by fsspec: read on where a connection broke, and refused in a sentence where it stays so."""

from __future__ import annotations

import io
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import fsspec
import fsspec.core

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.base.shown import shown, without_secrets

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)
"""Seconds before each further try; the count begins anew with every byte that comes."""
PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "oci": "ocifs",
    "webhdfs": "requests",
}
"""The package that fsspec needs for the URLs of a scheme."""
STAMPS = frozenset(
    ("etag", "content-md5", "digest", "last-modified", "lastmodified", "mtime")
    + ("md5hash", "checksum", "crc32c", "created", "updated", "blob-id")
)
"""What file systems of fsspec tell of a file that changes with its content."""
FOR_A_WHILE = (408, 425, 429)
"""Answers of a server that blame the client, and yet may be others a little later: too slow, too early, too often."""
FAULTS = (
    ("aiohttp", "ClientError"),
    ("httpx", "HTTPError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
"""What the libraries below fsspec raise for a network that fails, besides errors of the operating system."""
UNREACHABLE = (
    ("aiohttp", "ClientConnectorError"),
    ("httpx", "ConnectError"),
    ("botocore.exceptions", "EndpointConnectionError"),
    ("botocore.exceptions", "NoCredentialsError"),
    ("google.auth.exceptions", "DefaultCredentialsError"),
    ("huggingface_hub.errors", "OfflineModeIsEnabled"),
)
"""What of them cannot be helped by waiting, at first contact: no such server, no network, nothing to log in with."""
BLOCK = 2**20

T = TypeVar("T")


class BrokenOffError(UserError):
    """A connection that broke off, and did so again at every further try."""


def told_of(url: str, *, setting: str) -> dict[str, Any]:
    """Return what a file system tells of a file, its `size` among it. Raises UserError where it cannot be asked."""
    filesystem, inside = filesystem_of(url, setting=setting)
    return _tried(lambda: dict(filesystem.info(inside)), url, setting=setting)


def stamps(told: dict[str, Any]) -> dict[str, str]:
    """Return the size of a file and what else changes with its content, of what its file system tells."""
    found = {name: str(value) for name, value in sorted(told.items()) if name.lower().replace("_", "-") in STAMPS}
    return {"size": str(told.get("size")), **found}


def files_at(url: str, *, setting: str) -> list[str]:
    """Return the URLs of the files below a folder (its name ends in /), or of those that a pattern takes, sorted."""
    filesystem, inside = filesystem_of(url, setting=setting)
    find = filesystem.find if url.endswith("/") else filesystem.glob
    found = _tried(lambda: list(find(inside)), url, setting=setting)
    _, chain, rest = url.partition("::")
    return [f"{filesystem.unstrip_protocol(match)}{chain}{rest}" for match in sorted(found)]


def filesystem_of(url: str, *, setting: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the file's place in it. Raises UserError where a package is missing."""
    scheme = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        fix = f"pip install {package}" if package else f"install what it asks for ({error})"
        raise UserError(
            f"{setting}.path: {url} needs a package for {scheme}:// that is not installed; {fix}."
        ) from error
    except ValueError as error:
        raise UserError(f"{setting}.path: {url} cannot be read ({error}); correct the URL.") from error


class RemoteFile(io.RawIOBase):
    """The bytes of a remote file, which is opened again, and gone on with, where its connection breaks.

    Any place of it can be gone to; where a server gives no parts of files, it is read up to there.
    """

    def __init__(self, url: str, *, setting: str) -> None:
        self._url, self._setting = url, setting
        self._filesystem, self._inside = filesystem_of(url, setting=setting)
        self.told = stamps(told := told_of(url, setting=setting))
        """What changes with its content: see `stamps`."""
        self.size: int | None = told.get("size")
        """Bytes; None where nobody tells."""
        self._offset = self._at = 0  # where the reader is, and where the open stream is
        self._stream: Any = None
        self._has_parts = True

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; the next read looks for it."""
        if whence == io.SEEK_END and self.size is None:
            raise UserError(
                f"{self._setting}.path: {self._url} is of no size that its server tells, so that it can only be read "
                "from its start; copy it here, and name the copy."
            )
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self.size or 0}[whence]
        self._offset = start + offset
        return self._offset

    def readinto(self, buffer: Any) -> int:
        """Read some bytes. Raises UserError where the file has changed, or its connection breaks again and again."""
        content = _tried(lambda: self._read(len(buffer)), self._url, setting=self._setting, at=self._offset)
        buffer[: len(content)] = content
        self._offset += len(content)
        return len(content)

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        super().close()

    def _read(self, size: int) -> bytes:
        is_end = self.size is not None and self._offset >= self.size
        if is_end or not size:
            return b""
        try:
            content = self._read_parts(size) if self._has_parts else self._read_whole(size)
            if not content and self.size is not None:
                raise EOFError(f"it ends where {self.size} bytes were said to be")
        except BaseException:
            self._drop()
            raise
        self._at = self._offset + len(content)
        return content

    def _read_parts(self, size: int) -> bytes:
        try:
            self._open()
            if self._at != self._offset:
                self._stream.seek(self._offset)
            return bytes(self._stream.read(size))
        except ValueError:  # of fsspec: this server gives files whole
            self._drop()
            self._has_parts = False
            return self._read_whole(size)

    def _read_whole(self, size: int) -> bytes:
        if self._at > self._offset:
            self._drop()
        self._open(**({"block_size": 0} if "http" in self._filesystem.protocol else {}))
        while self._at < self._offset:
            passed = self._stream.read(min(BLOCK, self._offset - self._at))
            if not passed:
                raise EOFError(f"it ends at byte {self._at}")
            self._at += len(passed)
        return bytes(self._stream.read(size))

    def _open(self, **options: Any) -> None:
        """Open the file where it is not open. Raises UserError where it is another than before."""
        if self._stream is not None:
            return
        if stamps(dict(self._filesystem.info(self._inside))) != self.told:
            raise UserError(
                f"{self._setting}.path: {self._url} has changed while it was read; begin again when it stays as it is."
            )
        self._stream, self._at = self._filesystem.open(self._inside, "rb", **options), 0

    def _drop(self) -> None:
        stream, self._stream, self._at = self._stream, None, 0
        if stream is not None:
            with suppress(OSError, RuntimeError):  # what is broken is closed anyhow
                stream.close()


def _tried(act: Callable[[], T], url: str, *, setting: str, at: int | None = None) -> T:
    """What an act gives, which is tried again where a connection breaks. `at`: bytes read so far; None = first contact.

    Raises UserError for a refusal, and when no further try has helped.
    """
    for wait in (*WAITS_S, None):
        try:
            return act()
        except _faults() as error:
            if _is_refusal(error, begun=bool(at)):
                raise _refused(error, url, setting=setting) from error
            if wait is None:
                raise _broken_off(error, url, setting=setting, at=at) from error
            log.warning("%s: %s; trying again in %g s", without_secrets(url), _cause(error, url), wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _is_refusal(error: BaseException, *, begun: bool) -> bool:
    """Whether another try cannot help: the file is not there or not allowed, or at first contact no server is."""
    causes = list(_causes(error))
    for cause in causes:
        if (status := _status(cause)) is not None:
            return 400 <= status < 500 and status not in FOR_A_WHILE
        if isinstance(cause, (ConnectionRefusedError, socket.gaierror, *_loaded(UNREACHABLE))):
            return not begun
    is_told_so = isinstance(error, (FileNotFoundError, PermissionError))
    return is_told_so and not any(isinstance(cause, _faults()) for cause in causes[1:])


def _status(error: BaseException) -> int | None:
    """A server's answer by its number; None where there was none."""
    if isinstance(error, _loaded((("aiohttp", "ClientResponseError"),))):
        return int(error.status)
    if isinstance(error, _loaded((("httpx", "HTTPStatusError"), ("huggingface_hub.errors", "HfHubHTTPError")))):
        return int(error.response.status_code)
    return None


def _faults() -> tuple[Any, ...]:
    """What a network that fails is raised as."""
    return (OSError, EOFError, *_loaded(FAULTS))


def _loaded(names: Sequence[tuple[str, str]]) -> tuple[Any, ...]:
    """Classes by their modules and names, of the modules that are imported: others have raised nothing."""
    modules = ((sys.modules.get(module), name) for module, name in names)
    return tuple(vars(module)[name] for module, name in modules if module is not None and name in vars(module))


def _refused(error: Exception, url: str, *, setting: str) -> UserError:
    if isinstance(error, PermissionError):
        return UserError(f"{setting}.path: {url} may not be read by this user; change its permissions.")
    why = "its server is not there, has no such file, or refuses this name, password or token"
    return UserError(f"{setting}.path: {url} cannot be read: {why}; correct the URL.")


def _broken_off(error: Exception, url: str, *, setting: str, at: int | None) -> UserError:
    where = "cannot be reached" if at is None else f"broke off at byte {at}"
    return BrokenOffError(
        f"{setting}.path: {url} {where} ({_cause(error, url)}), and {len(WAITS_S)} further tries did not help; when "
        "the network is well again, go on with --resume from the last checkpoint."
    )


def _cause(error: BaseException, url: str) -> str:
    """The innermost error in one line, without the URL, which stands beside it."""
    inner = list(_causes(error))[-1]
    status = _status(inner)
    said = f"status {status}" if status is not None else " ".join(str(inner).replace(url, "").split())
    return shown(f"{type(inner).__name__}: {said}" if said else type(inner).__name__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised for."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
