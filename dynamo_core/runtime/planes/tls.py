"""TLS between processes: who shows which certificate, and who checks it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import msgspec

from dynamo_core.errors import ConfigError, StartupError

__all__ = ["Tls", "tls_from"]

_NAMES = {"ca": "DYN_TCP_TLS_CA_CERT_PATH", "cert": "DYN_TCP_TLS_CERT_PATH", "key": "DYN_TCP_TLS_KEY_PATH"}


class Tls(msgspec.Struct, frozen=True):
    ca: str | None = None
    """File with the certificates that are trusted; ``None``: the system's."""
    cert: str | None = None
    """File with this process's own certificate."""
    key: str | None = None
    server_name: str | None = None
    """Name that every server's certificate must carry; ``None``: the host of its address."""
    verify_clients: bool = False
    """Mutual: who calls must show a certificate that ``ca`` vouches for."""

    @property
    def serves(self) -> bool:
        """This process speaks TLS on its own listener."""
        return self.cert is not None

    def server(self) -> ssl.SSLContext:
        """Reads the files. Raises StartupError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._own(context)
        if self.verify_clients:
            context.verify_mode = ssl.CERT_REQUIRED
            self._trusted(context)
        return context

    def client(self) -> ssl.SSLContext:
        """Reads the files. Raises StartupError."""
        context = ssl.create_default_context() if self.ca is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            self._trusted(context)
        if self.cert is not None:
            self._own(context)
        return context

    def _own(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(str(self.cert), self.key)
        except (OSError, ssl.SSLError) as error:
            raise StartupError(_unreadable(f"{self.cert} and {self.key}", error, "tls_cert and tls_key")) from None

    def _trusted(self, context: ssl.SSLContext) -> None:
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise StartupError(_unreadable(str(self.ca), error, "tls_ca")) from None


def tls_from(given: Tls, environ: Mapping[str, str]) -> Tls:
    """With what the environment adds. Raises ConfigError for halves."""
    found = {field: getattr(given, field) or environ.get(name) or None for field, name in _NAMES.items()}
    if (found["cert"] is None) != (found["key"] is None):
        raise ConfigError("[plugins.tcp] tls_cert and tls_key belong together: set both or neither")
    verify = given.verify_clients or environ.get("DYN_TCP_TLS_VERIFY_CLIENTS", "").lower() in {"1", "true", "yes", "on"}
    if verify and (found["ca"] is None or found["cert"] is None):
        raise ConfigError("[plugins.tcp] tls_verify_clients needs tls_ca, tls_cert and tls_key: set them, too")
    name = given.server_name or environ.get("DYN_TCP_TLS_SERVER_NAME") or None
    return Tls(**found, server_name=name, verify_clients=verify)


def _unreadable(files: str, error: Exception, keys: str) -> str:
    reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
    return f"{files}, named for TLS of the request plane, cannot be used ({reason}): correct [plugins.tcp] {keys}"
