"""Which transport a protocol has, and which extra of wdecomp brings it."""

from wdecomp.errors import MissingExtraError
from wdecomp.remote.transport import Transport
from wdecomp.remote.urls import Address


def transport_of(address: Address) -> Transport:
    """The transport to the root of a store; its packages are imported here and nowhere before.

    Raises:
        MissingExtraError: they are not installed.
    """
    extra = {"https": "http", "gs": "gcs", "abfs": "azure", "az": "azure"}.get(
        address.protocol, address.protocol
    )
    try:
        return _opened(address)
    except ImportError as error:
        lacking = f" ({error.name})" if error.name else ""
        raise MissingExtraError(
            f"{address}: is not on this disk, and the packages that reach it are not "
            f"installed{lacking}. Install them: pip install 'wdecomp[{extra}]'"
        ) from None


def _opened(address: Address) -> Transport:
    if address.protocol == "s3":
        from wdecomp.remote.s3 import S3

        return S3(address.root)
    if address.protocol == "hf":
        from wdecomp.remote.hub import Hub

        return Hub(address.root)
    if address.protocol in ("http", "https"):
        from wdecomp.remote.web import Web

        return Web(str(address))
    from wdecomp.remote.buckets import Bucket

    return Bucket(address.protocol, address.root)
