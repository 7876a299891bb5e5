"""TLS to the database server: the URL's options, and the context for asyncpg."""

from ssl import CERT_NONE, VERIFY_X509_STRICT, SSLContext, create_default_context
from typing import NamedTuple

# The values of libpq's `sslmode=`, which asyncpg knows, and of encode/databases' `ssl=`.
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SSL_FLAGS = {"true": True, "false": False}


class TLS(NamedTuple):
    """The verification of the server's certificate, and the client's own certificate."""

    mode: str | bool | None = None
    ca_file: str = ""
    certificate: str = ""
    key: str = ""
    password: str = ""
    channel_binding: bool = False


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"has an unknown {name}; use one of {', '.join(known)}")
    return value


def take_tls(given: dict[str, str]) -> TLS:
    take = given.pop
    flag, mode = take("ssl", ""), take("sslmode", "")
    if flag and mode:
        raise ValueError("has both ssl and sslmode")
    if flag in SSL_FLAGS:
        chosen: str | bool | None = SSL_FLAGS[flag]
    else:
        chosen = one_of("sslmode", flag or mode, SSL_MODES) if flag or mode else None
    bindings = ("disable", "prefer", "require")
    binding = one_of("channel_binding", take("channel_binding", "prefer"), bindings)
    if binding == "require" and chosen in ("disable", False):
        raise ValueError("requires channel_binding but disables TLS")
    certificate = (take("sslcert", ""), take("sslkey", ""), take("sslpassword", ""))
    return TLS(chosen, take("sslrootcert", ""), *certificate, binding == "require")


def context(tls: TLS) -> SSLContext | str | bool | None:
    """asyncpg's argument `ssl`. Raises OSError for an unreadable file.

    asyncpg lacks channel binding. Its purpose is to authenticate the server. A certificate that is
    verified for the server's name does this too.
    """
    verify = tls.ca_file or tls.channel_binding or tls.mode in ("verify-ca", "verify-full", True)
    if tls.mode in ("disable", False) or not (verify or tls.certificate):
        return tls.mode
    own = tls.ca_file not in ("", "system")
    made = create_default_context(cafile=tls.ca_file if own else None)
    if own:
        # Python 3.13 and newer refuse a CA without keyUsage. A CA made by PostgreSQL's manual has
        # none, and libpq accepts it.
        made.verify_flags &= ~VERIFY_X509_STRICT
    # Anybody can get a certificate from a CA of the system, for some name. So check the name.
    made.check_hostname = bool(verify and not (own and tls.mode == "verify-ca"))
    if not verify:
        made.verify_mode = CERT_NONE
    if tls.certificate:
        # Without a password, OpenSSL would ask at the terminal.
        made.load_cert_chain(tls.certificate, tls.key or None, lambda: tls.password)
    return made
