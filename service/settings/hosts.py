"""Hosts, origins and networks, as settings list them."""

import ipaddress
import re

_is_name = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.(?!-)[a-z0-9_-]{1,63})*").fullmatch


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_host(text: str) -> str:
    """A host as a request's URL names it, in lower case; IPv6 with or without brackets."""
    host = text.lower().removesuffix(".")
    if _is_name(host):
        return host
    try:
        return str(ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        raise ValueError(f"has {text!r}, which is no host without scheme, port and path") from None


def parse_hosts(text: str) -> list[str]:
    """Hosts; `*` for any, and with `*.` in front all below a domain."""

    def parse(part: str) -> str:
        if part == "*":
            return part
        return "*." + parse_host(part[2:]) if part.startswith("*.") else parse_host(part)

    return [parse(part) for part in split(text)]


def parse_origins(text: str) -> list[str]:
    """Origins as browsers send them: in lower case, without the scheme's own port (RFC 6454)."""

    def parse(part: str) -> str:
        if part == "*":
            return part
        found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/]*?)(?::([0-9]{1,5}))?", part.lower())
        if found is None or not 0 < int(found[3] or 1) < 65536:
            raise ValueError(
                f"has {part!r}, which is no origin such as https://app.example.com without a path"
            )
        host = parse_host(found[2])
        host = f"[{host}]" if ":" in host else host
        own = {"http": 80, "https": 443}.get(found[1])
        port = int(found[3] or own or 0)
        return f"{found[1]}://{host}" + (f":{port}" if port and port != own else "")

    return [parse(part) for part in split(text)]


def parse_networks(text: str) -> None:
    """Only checks them: uvicorn reads them itself, and says nothing of those that it can't read."""
    for part in split(text) if text != "*" else []:
        try:
            ipaddress.ip_network(part)
        except ValueError:
            raise ValueError(f"has {part!r}, which is no address or network") from None


def parse_address(text: str) -> None:
    """A host to serve on."""
    if text:
        parse_host(text.partition("%")[0])
