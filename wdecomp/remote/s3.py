"""Objects in an S3 bucket, or one that speaks its language, through s3fs.

Credentials, region and endpoint are boto's own: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ….
s3fs would try again by itself, and botocore too; both are told not to, so that one rule holds.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import s3fs
from fsspec.asyn import sync

from wdecomp.remote.transport import (
    Entry,
    OtherContentError,
    PassingError,
    RefusedError,
    by_status,
    check_range,
    forbidden,
    missing,
)

CONNECTIONS = 64
TIMEOUT = 30  # seconds without a byte
GONE = ("NoSuchKey", "NoSuchBucket", "404")
PASSING = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling")
UNKNOWN = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "AccessDenied")

Found = TypeVar("Found")


class S3:
    """One bucket."""

    guesses = ()
    immutable = False
    pins = True

    def __init__(self, bucket: str) -> None:
        self._bucket = self.root = bucket
        self._files = s3fs.S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "max_pool_connections": CONNECTIONS,
                "connect_timeout": 10,
                "read_timeout": TIMEOUT,
                "retries": {"total_max_attempts": 1, "mode": "standard"},
            },
        )
        self._files.retries = 1

    def entries(self, folder: str) -> list[Entry]:
        prefix = f"{folder}/" if folder else ""
        return self._do(lambda: self._list(prefix))

    def entry(self, name: str) -> Entry:
        answer = self._do(lambda: self._call("head_object", name))
        return Entry(name, answer["ContentLength"], answer.get("ETag", ""))

    def read(self, name: str, start: int, stop: int, etag: str) -> bytes:
        return self._do(lambda: self._read(name, start, stop, etag))

    def write(self, name: str, source: bytes | Path, fresh: bool) -> None:
        if isinstance(source, Path):
            file, mode = str(source), "create" if fresh else "overwrite"
            at = f"{self._bucket}/{name}"
            self._do(lambda: self._files._put_file(file, at, mode=mode))
            return
        only = {"IfNoneMatch": "*"} if fresh else {}
        self._do(lambda: self._call("put_object", name, Body=source, **only))

    def remove(self, name: str) -> None:
        self._do(lambda: self._call("delete_object", name))

    async def _call(self, method: str, name: str, **more: Any) -> Any:
        return await self._files._call_s3(method, Bucket=self._bucket, Key=name, **more)

    async def _list(self, prefix: str) -> list[Entry]:
        found: list[Entry] = []
        asked = {"Bucket": self._bucket, "Prefix": prefix, "Delimiter": "/"}
        while True:
            page = await self._files._call_s3("list_objects_v2", **asked)
            found += [
                Entry(each["Key"], each["Size"], each.get("ETag", ""))
                for each in page.get("Contents", ())
                if not each["Key"].endswith("/")  # what consoles make for an empty folder
            ]
            folders = page.get("CommonPrefixes", ())
            found += [Entry(each["Prefix"].rstrip("/"), is_folder=True) for each in folders]
            if not page.get("IsTruncated"):
                return found
            asked["ContinuationToken"] = page["NextContinuationToken"]

    async def _read(self, name: str, start: int, stop: int, etag: str) -> bytes:
        same = {"IfMatch": etag} if etag else {}
        answer = await self._call("get_object", name, Range=f"bytes={start}-{stop - 1}", **same)
        body, length = answer["Body"], answer.get("ContentLength")
        try:
            check_range(answer.get("ContentRange"), length, start, stop)
            if etag and answer.get("ETag", etag) != etag:
                raise OtherContentError
            found: bytes = await body.read()
        finally:
            body.close()
        return found

    def _do(self, call: Callable[[], Awaitable[Found]]) -> Found:
        try:
            found: Found = sync(self._files.loop, call)
        except Exception as error:  # noqa: BLE001  three libraries have their own
            raise _meaning(error) from None
        return found


def _meaning(error: BaseException) -> OSError:
    """What an error of s3fs, botocore or the connection stands for, without its text."""
    if isinstance(error, RefusedError | PassingError | OtherContentError):
        return error
    cause = error if hasattr(error, "response") else error.__cause__
    answer = getattr(cause, "response", None)
    if isinstance(answer, dict):
        return _answered(answer)
    kind = type(error).__name__
    if "Credentials" in kind or "Token" in kind or "SSO" in kind or "Profile" in kind:
        return forbidden(f"the environment has no credentials for S3 ({kind})")
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)) or "Timeout" in kind:
        return PassingError("the server does not answer in time")
    if "ParamValidation" in kind or ("Endpoint" in kind and "Connection" not in kind):
        return RefusedError(f"S3's client does not take this address ({kind})")
    if isinstance(error, FileNotFoundError):
        return missing()
    if isinstance(error, PermissionError):
        return forbidden("access is denied: the environment has no credentials that open it")
    return PassingError(f"the connection failed ({kind})")


def _answered(answer: dict[str, Any]) -> OSError:
    code = str(answer.get("Error", {}).get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in GONE:
        return missing()
    if code in ("PreconditionFailed", "412"):
        condition = answer.get("Error", {}).get("Condition", "")
        if "None" in condition:
            return FileExistsError(errno.EEXIST, "is there already")
        return OtherContentError()
    if code in UNKNOWN:
        return forbidden(f"access is denied ({code}): the environment has no key that opens it")
    if any(code.startswith(word) for word in PASSING):
        return PassingError(f"the server answers {code}")
    return by_status(status) or RefusedError(f"the server answers {code or status}")
