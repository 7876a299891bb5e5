"""TLS to the database server: what its URL asks for, and the context that does it."""

from ssl import CERT_NONE, VERIFY_X509_STRICT, SSLContext, create_default_context
from typing import NamedTuple

# What `sslmode=` means to asyncpg, by libpq's names; and what `ssl=` means to encode/databases.
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SSL_FLAGS = {"true": True, "false": False}


class TLS(NamedTuple):
    """How the server's certificate is verified, and which one the client has."""

    mode: str | bool | None = None
    ca_file: str = ""
    certificate: str = ""
    key: str = ""
    password: str = ""
    channel_binding: bool = False


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"has an unknown {name}; known are {', '.join(known)}")
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
        raise ValueError("requires channel_binding but no TLS")
    certificate = (take("sslcert", ""), take("sslkey", ""), take("sslpassword", ""))
    return TLS(chosen, take("sslrootcert", ""), *certificate, binding == "require")


def context(tls: TLS) -> SSLContext | str | bool | None:
    """asyncpg's `ssl`; OSError where a file can't be read.

    asyncpg knows no channel binding. Its purpose is to be sure of the server; a certificate that is
    verified for the server's name does that as well.
    """
    verify = tls.ca_file or tls.channel_binding or tls.mode in ("verify-ca", "verify-full", True)
    if tls.mode in ("disable", False) or not (verify or tls.certificate):
        return tls.mode
    own = tls.ca_file not in ("", "system")
    made = create_default_context(cafile=tls.ca_file if own else None)
    if own:
        # Python 3.13 and newer refuse a CA without keyUsage. Those that PostgreSQL's manual makes
        # have none, and libpq accepts them.
        made.verify_flags &= ~VERIFY_X509_STRICT
    # Anybody can have a certificate of the CAs that the system trusts, for some name.
    made.check_hostname = bool(verify and not (own and tls.mode == "verify-ca"))
    if not verify:
        made.verify_mode = CERT_NONE
    if tls.certificate:
        # Without a password OpenSSL would ask for one at the terminal.
        made.load_cert_chain(tls.certificate, tls.key or None, lambda: tls.password)
    return made
