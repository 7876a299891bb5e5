"""The public keys of the identity provider, kept while it is away."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jwt

from service import settings
from service.settings.public_key import algorithms_of, load_pem
from service.users import fetching

logger = logging.getLogger("service")

# Known keys are read again in the background after so many seconds, since the provider may have
# taken one back.
REFRESH = 300
# An unknown key's name makes the keys be read again at most once in so many seconds.
UNKNOWN = 60
# Without any keys they are tried again after so many seconds.
RETRY = 5


class ProviderUnavailable(Exception):
    """The provider's keys can't be read, so nobody knows whether the token is valid."""


class Key(NamedTuple):
    """A key: its name, if it has one, and the algorithms that it may be used with."""

    kid: str | None
    algorithms: tuple[str, ...]
    public: Any


def parse_jwks(document: Any) -> list[Key]:
    """The keys of a JWK Set (RFC 7517) that verify signatures. ValueError if there are none."""
    found = document.get("keys") if isinstance(document, dict) else None
    keys = [key for jwk in found if (key := _parse(jwk))] if isinstance(found, list) else []
    if not keys:
        raise ValueError("the provider has no key that can be used")
    return keys


def _parse(jwk: Any) -> Key | None:
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return None
    try:
        public = jwt.PyJWK(jwk).key
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
        return None
    kid, alg = jwk.get("kid"), jwk.get("alg")
    algorithms = tuple(name for name in algorithms_of(public) if alg in (None, name))
    return Key(kid if isinstance(kid, str) else None, algorithms, public) if algorithms else None


def load() -> list[Key]:
    """Reads the provider's keys. Raises fetching.ERRORS."""
    until = time.monotonic() + fetching.SECONDS
    url: Any = settings.JWT_JWKS_URL
    if not url:
        discovery = f"{settings.JWT_ISSUER.rstrip('/')}/.well-known/openid-configuration"
        document = fetching.read_json(discovery, until)
        url = document.get("jwks_uri") if isinstance(document, dict) else None
        if not isinstance(url, str) or document.get("issuer") != settings.JWT_ISSUER:
            raise ValueError(f"{discovery} is not of JWT_ISSUER")
        schemes = ("https://",) if discovery.startswith("https://") else ("https://", "http://")
        if not url.startswith(schemes):
            raise ValueError(f"{discovery} names no keys at an address of https")
    return parse_jwks(fetching.read_json(url, until))


class Keys:
    """The keys that `load` reads, which is called in a thread and by one request for all.

    `version` changes with the keys.
    """

    def __init__(self, load: Callable[[], list[Key]]) -> None:
        self.version = 0
        self._load = load
        self._keys: Sequence[Key] = ()
        self._failed = False
        self._task: asyncio.Task[None] | None = None
        # When keys were asked for at last, and when because of an unknown name.
        self._asked = self._asked_unknown = -math.inf

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key of a name, for an algorithm. Raises ProviderUnavailable if it may exist."""
        key = self._look_up(kid, algorithm)
        is_read = self.refresh()
        now = time.monotonic()
        if not is_read and key is None and self._keys and now - self._asked_unknown > UNKNOWN:
            self._asked_unknown = now
            self._read()
        if key is None and self._task is not None:
            await asyncio.shield(self._task)
            key = self._look_up(kid, algorithm)
        if key is None and self._failed:
            raise ProviderUnavailable
        return key

    def refresh(self) -> bool:
        """Whether it was time to read the keys again. That goes on in the background."""
        is_time = time.monotonic() - self._asked > (REFRESH if self._keys else RETRY)
        if is_time:
            self._read()
        return is_time

    def _look_up(self, kid: str | None, algorithm: str) -> Key | None:
        fitting = [key for key in self._keys if algorithm in key.algorithms]
        named = [key for key in fitting if key.kid == kid]
        # A token or a key without a name leaves no choice only if there is one key.
        found = named or [key for key in fitting if kid is None or key.kid is None]
        return found[0] if len(found) == 1 else None

    def _read(self) -> None:
        if self._task is None:
            self._asked = time.monotonic()
            self._task = asyncio.create_task(self._read_all())

    async def _read_all(self) -> None:
        try:
            async with asyncio.timeout(fetching.SECONDS):
                keys = await fetching.in_thread(self._load)
        except fetching.ERRORS as error:
            self._failed = True
            reason = str(error) or f"no answer within {fetching.SECONDS} s"
            logger.warning("the keys of JWT_ISSUER can't be read: %s", reason)
        else:
            self._failed = False
            if keys != self._keys:
                self._keys = keys
                self.version += 1
        finally:
            self._task = None


class FixedKeys(Keys):
    """The one key of JWT_PUBLIC_KEY, whatever name a token gives to it."""

    def __init__(self, pem: str) -> None:
        super().__init__(list)
        public = load_pem(pem)
        self._keys = [Key(None, algorithms_of(public), public)]

    def refresh(self) -> bool:
        return False

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        return self._look_up(kid, algorithm)


def make_keys() -> Keys:
    """The keys of the settings. Nothing is read before the first token comes."""
    pem = settings.JWT_PUBLIC_KEY
    return FixedKeys(pem) if pem else Keys(load)
