"""Parses the hosts, origins and networks of settings."""

import ipaddress
import re

_is_name = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.(?!-)[a-z0-9_-]{1,63})*").fullmatch


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_host(text: str) -> str:
    """A host in lower case, as in a request's URL. IPv6 may have brackets."""
    host = text.lower().removesuffix(".")
    if _is_name(host):
        return host
    try:
        return str(ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        raise ValueError(
            f"has {text!r}, which is not a host (without scheme, port and path)"
        ) from None


def parse_hosts(text: str) -> list[str]:
    """Hosts. `*` means any host, `*.example.com` any host below the domain."""

    def parse(part: str) -> str:
        if part == "*":
            return part
        return "*." + parse_host(part[2:]) if part.startswith("*.") else parse_host(part)

    return [parse(part) for part in split(text)]


def parse_origins(text: str) -> list[str]:
    """Origins as browsers send them: in lower case, without the default port (RFC 6454)."""

    def parse(part: str) -> str:
        if part == "*":
            return part
        found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/]*?)(?::([0-9]{1,5}))?", part.lower())
        if found is None or not 0 < int(found[3] or 1) < 65536:
            raise ValueError(
                f"has {part!r}, which is not an origin such as https://app.example.com"
            )
        host = parse_host(found[2])
        host = f"[{host}]" if ":" in host else host
        default = {"http": 80, "https": 443}.get(found[1])
        port = int(found[3] or default or 0)
        return f"{found[1]}://{host}" + (f":{port}" if port and port != default else "")

    return [parse(part) for part in split(text)]


def parse_networks(text: str) -> None:
    """Only checks the value: uvicorn reads it itself, but ignores invalid items silently."""
    for part in split(text) if text != "*" else []:
        try:
            ipaddress.ip_network(part)
        except ValueError:
            raise ValueError(f"has {part!r}, which is not an address or a network") from None


def parse_address(text: str) -> None:
    """Checks the host to serve on."""
    if text:
        parse_host(text.partition("%")[0])
