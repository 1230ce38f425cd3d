"""Certificate and key, looked at before anything is started."""

from __future__ import annotations

import ssl
from pathlib import Path

from dynamo_core.config import Settings
from dynamo_core.errors import StartupError

__all__ = ["check_tls", "scheme"]


def scheme(settings: Settings) -> str:
    return "https" if settings.tls_cert_path else "http"


def check_tls(settings: Settings) -> None:
    """Raises :class:`StartupError` for one without the other, files that cannot be read, and a key of another certificate."""
    cert, key = settings.tls_cert_path, settings.tls_key_path
    if cert is None and key is None:
        return
    if cert is None or key is None:
        missing, given = ("--tls-cert-path", "--tls-key-path") if cert is None else ("--tls-key-path", "--tls-cert-path")
        raise StartupError(f"{given} was given without {missing}: HTTPS needs both.")
    for flag, path in (("--tls-cert-path", cert), ("--tls-key-path", key)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StartupError(f"{flag} {path} cannot be read ({reason}): name a PEM file.") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError):
        raise StartupError(
            f"The certificate {cert} and the key {key} do not go together: name PEM files of one pair, without a password."
        ) from None
