"""Parses the settings of an identity provider."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from environs import EnvError

from service.settings.hosts import split

MAX_ISSUER = 255


def parse_url(text: str) -> str:
    """A URL of http or https; an empty text stays empty."""
    if not text:
        return text
    parts = urlsplit(text)
    is_url = parts.scheme in ("http", "https") and parts.hostname and not parts.fragment
    if not is_url or parts.username or not re.fullmatch("[!-~]+", text):
        raise ValueError("is not a URL such as https://auth.example.com/")
    # This raises ValueError for a port that can't be.
    _ = parts.port
    return text


def parse_issuer(text: str) -> str:
    """A provider's name, as the claim `iss` has it."""
    if len(text) > MAX_ISSUER:
        raise ValueError(f"has over {MAX_ISSUER} characters")
    if "?" in text:
        raise ValueError("has a query")
    return parse_url(text)


def parse_audience(text: str) -> list[str]:
    """The names of the service at its provider."""
    return split(text)


def parse_public_key(text: str) -> str:
    """A PEM, given itself or by the path of its file. Its line ends may be a backslash and an n."""
    if not text:
        return text
    if text.startswith("-----BEGIN"):
        pem = text.replace("\\n", "\n")
    else:
        try:
            pem = Path(text).read_text()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            raise ValueError(f"names a file that can't be read: {reason}") from None
    # The import takes longer than all other settings, and few have such a key.
    from service.settings.public_key import load_pem

    load_pem(pem)
    return pem


def check(issuer: str, audience: list[str], jwks_url: str, public_key: str, access: str) -> None:
    """Raises EnvError if the settings don't fit together."""
    given = {"JWT_AUDIENCE": audience, "JWT_JWKS_URL": jwks_url, "JWT_PUBLIC_KEY": public_key}
    if not issuer:
        for name, value in given.items():
            if value:
                raise EnvError(f"{name} needs JWT_ISSUER")
        return
    if not audience:
        raise EnvError("JWT_ISSUER needs JWT_AUDIENCE: else tokens for other services would count")
    if jwks_url and public_key:
        raise EnvError("JWT_JWKS_URL and JWT_PUBLIC_KEY exclude each other")
    if access == "open":
        raise EnvError("JWT_ISSUER has no effect with ACCESS=open")
