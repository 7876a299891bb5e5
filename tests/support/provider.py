"""An identity provider on loopback, with keys that the tests choose."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.support.servers import free_port

AUDIENCE = "https://notes.example.com"
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


def new_key(algorithm: str, bits: int = 2048) -> Any:
    """A private key for an algorithm."""
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, bits)


def public_jwk(key: Any, kid: str, algorithm: str) -> dict[str, Any]:
    jwk = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**jwk, "kid": kid, "use": "sig", "alg": algorithm}


class Provider:
    """Signs tokens, and serves the public keys.

    `answers` are what it serves by path, `asked` the paths that it was asked for. Without `runs` it
    takes requests and doesn't answer them.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/realms/a"
        self.keys: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[str] = []
        self.runs = threading.Event()
        self.runs.set()

    def publish(self, *jwks: dict[str, Any]) -> None:
        """Serves these keys alone."""
        discovery = {"issuer": self.url, "jwks_uri": f"{self.url}/certs"}
        self.answers = {
            "/realms/a/.well-known/openid-configuration": discovery,
            "/realms/a/certs": {"keys": [*jwks]},
        }

    def rotate(self, kid: str, algorithm: str = "ES256") -> None:
        """Serves one new key alone."""
        self.keys[kid] = new_key(algorithm)
        self.publish(public_jwk(self.keys[kid], kid, algorithm))

    def claims(self, **claims: Any) -> dict[str, Any]:
        """The claims of a valid token. None leaves one out."""
        now = int(time.time())
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "bob", "iat": now, "exp": now + 300}
        return {name: value for name, value in (usual | claims).items() if value is not None}

    def token(self, kid: str | None = "a", algorithm: str = "ES256", **claims: Any) -> str:
        headers = {} if kid is None else {"kid": kid}
        key = self.keys[kid or "a"]
        return jwt.encode(self.claims(**claims), key, algorithm, headers)


@contextmanager
def providing(port: int | None = None) -> Iterator[Provider]:
    """Runs a provider with the key "a"."""
    provider = Provider(port or free_port())
    provider.rotate("a")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            provider.asked.append(self.path)
            provider.runs.wait(60)
            answer = provider.answers.get(self.path)
            if self.path in provider.redirects:
                self.send_response(302)
                self.send_header("location", provider.redirects[self.path])
                self.send_header("content-length", "0")
                self.end_headers()
                return
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            # The service doesn't wait for a provider that hangs.
            with suppress(ConnectionError):
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", provider.port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield provider
    finally:
        provider.runs.set()
        server.shutdown()
        server.server_close()
        thread.join()
