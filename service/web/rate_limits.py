"""How often a client may ask: RATE_LIMIT, for each user, or else for each address.

It is exact within a process: each process counts for itself.
"""

import time
from collections.abc import Callable, Hashable
from socket import AF_INET, AF_INET6, inet_pton

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from service.settings import RATE_LIMIT
from service.settings.rates import SECONDS, Rate
from service.tables import Row

# An IPv6 site has up to 65,536 networks of /64, so it can't make the service forget anybody.
CAPACITY = 100_000
SECOND = 10**9
# IPv4 addresses within IPv6: mapped ones (RFC 4291), and those of translators (RFC 6052).
_WITH_IPV4 = (inet_pton(AF_INET6, "::ffff:0:0")[:12], inet_pton(AF_INET6, "64:ff9b::")[:12])


class Allowances:
    """What each key may still send: as many requests as the rate has, which come back one by one.

    A key that has sent nothing for the time of the rate has its whole allowance, and needs no
    memory. So there are two generations: the keys of this turn, and those of the turn before, which
    are forgotten when the next one begins. A turn is as long as that time, or ends when it has
    `capacity` keys. Then some keys have their whole allowance too early, and none too late.
    """

    def __init__(
        self, rate: Rate, capacity: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        # In nanoseconds. Rounded up, as the rate is a maximum.
        self._interval = -(-SECONDS[rate.unit] * SECOND // rate.requests)
        self._time = self._interval * rate.requests
        self._capacity = capacity
        self._clock = clock
        # By key: when the allowance is whole again.
        self._recent: dict[Hashable, int] = {}
        self._older: dict[Hashable, int] = {}
        self._turn_ends = clock() + self._time

    def __len__(self) -> int:
        return len(self._recent) + len(self._older)

    def take(self, key: Hashable) -> int:
        """Takes a request: 0, or if none is left, the seconds until one is back, rounded up."""
        now = self._clock()
        if now >= self._turn_ends or len(self._recent) >= self._capacity:
            self._older, self._recent = self._recent, {}
            self._turn_ends = now + self._time
        whole = self._recent.get(key)
        if whole is None:
            whole = self._older.get(key, now)
        whole = max(whole, now)
        wait = whole + self._interval - self._time - now
        self._recent[key] = whole if wait > 0 else whole + self._interval
        return -(-wait // SECOND) if wait > 0 else 0

    def give_back(self, key: Hashable) -> None:
        """Gives a request back that was taken."""
        for keys in (self._recent, self._older):
            if key in keys:
                keys[key] -= self._interval
                return


class RateLimits:
    """Counts requests for users and for addresses, apart from each other.

    So a flood from many addresses makes it forget no user.
    """

    def __init__(self, rate: Rate) -> None:
        self._detail = f"Too many requests: at most {rate.requests} per {rate.unit}"
        self._users = Allowances(rate, CAPACITY)
        self._addresses = Allowances(rate, CAPACITY)

    def count(self, scope: Scope, user: Row | None = None) -> None:
        """Counts a request for the user, or else for the address. Raises HTTPException 429."""
        if user is None:
            wait = self._addresses.take(address_of(scope))
        else:
            wait = self._users.take(user["id"])
        if wait:
            if user is not None:
                # The log names who is refused.
                scope["user"] = user
            raise HTTPException(429, self._detail, {"Retry-After": str(wait)})

    def recognize(self, scope: Scope, user: Row) -> None:
        """Counts a request for the user that was counted for the address. HTTPException 429."""
        self._addresses.give_back(address_of(scope))
        self.count(scope, user)


def address_of(scope: Scope) -> bytes:
    """The client's IPv4 address, or the /64 network of its IPv6 address, which is one client's.

    It is empty for what is no address, such as the client of a Unix socket.
    """
    host = scope["client"][0] if scope.get("client") else ""
    try:
        if ":" not in host:
            return inet_pton(AF_INET, host)
        address = inet_pton(AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return b""
    return address[12:] if address[:12] in _WITH_IPV4 else address[:8]


limits = RateLimits(RATE_LIMIT) if RATE_LIMIT else None


class PerAddress:
    """Counts each request for its address."""

    def __init__(self, app: ASGIApp, limits: RateLimits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.limits.count(scope)
        await self.app(scope, receive, send)
