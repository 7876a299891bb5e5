"""Tokens of an identity provider: which ones count, and whose they are."""

import base64
import hashlib
import hmac
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from service.users.queries import names_for, normalize
from tests.support.databases import ROOT, NewDatabase, environment, execute
from tests.support.operating import add_user, operate
from tests.support.processes import Run, new_process
from tests.support.provider import AUDIENCE, Provider, new_key, providing, public_jwk
from tests.support.servers import free_port, serving
from tests.support.waiting import at_once, poll

INVALID = (401, 'Bearer error="invalid_token"')


def variables_for(provider: Provider, **variables: str) -> dict[str, str]:
    usual = {"ACCESS": "token", "JWT_ISSUER": provider.url, "JWT_AUDIENCE": f"other, {AUDIENCE}"}
    return usual | variables


def status(client: httpx2.Client, token: str, method: str = "GET") -> int:
    return client.request(method, "/notes/", headers=bearer(token)).status_code


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


class House(NamedTuple):
    """Two processes on a database that take a provider's tokens at once."""

    provider: Provider
    clients: list[httpx2.Client]
    database_url: str

    def operate(self, *arguments: str) -> str:
        variables = {"JWT_ISSUER": self.provider.url, "JWT_AUDIENCE": AUDIENCE, "ACCESS": "token"}
        result = operate(self.database_url, "users", *arguments, **variables)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def names(self) -> list[str]:
        return [line.split("\t")[0] for line in self.operate("list").splitlines()]


@pytest.fixture(scope="module")
def house(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    logs = tmp_path_factory.mktemp("identities")
    with providing() as provider:
        variables = variables_for(provider, ACCESS_CACHE_SECONDS="0")
        with (
            serving(shared_database_url, logs / "1", **variables) as one,
            serving(shared_database_url, logs / "2", **variables) as two,
        ):
            yield House(provider, [one, two], shared_database_url)


def test_the_first_request_makes_the_user(house: House) -> None:
    """A user is made once, also by requests to two processes at once, and operated as others."""
    for subject in ("248289dc-0000", "auth0|5f7c8ec7", "Ünknown", "MixedCase"):
        if not subject.isascii():
            assert status(house.clients[0], house.provider.token(sub=subject)) == 401
            continue
        tokens = [house.provider.token(sub=subject, jti=str(number)) for number in range(2)]
        calls: list[Callable[[], int]] = [
            partial(status, house.clients[n % 2], tokens[n // 2 % 2]) for n in range(12)
        ]
        assert at_once(calls) == [200] * 12
        lines = [line for line in house.operate("list").splitlines() if line.endswith(subject)]
        assert len(lines) == 1
    assert {"248289dc-0000", "mixedcase"} < set(house.names())
    assert any(re.fullmatch("auth0-5f7c8ec7-[0-9a-f]{8}", name) for name in house.names())

    token = house.provider.token(sub="248289dc-0000")
    shown = house.clients[0].get("/users/248289dc-0000", headers=bearer(token)).json()
    assert list(shown) == ["id", "username", "is_active", "created_at"]
    house.operate("deactivate", "248289dc-0000")
    answer = house.clients[0].get("/notes/", headers=bearer(token))
    assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})
    house.operate("activate", "248289dc-0000")
    assert status(house.clients[0], token) == 200
    # What the provider still lets in is a new user.
    house.operate("remove", "248289dc-0000")
    assert status(house.clients[1], token) == 200
    again = house.clients[0].get("/users/248289dc-0000", headers=bearer(token)).json()
    assert again["id"] > shown["id"]


def test_nobody_gets_the_name_of_another(house: House) -> None:
    """A subject that is the name of a user, in any case, is another user."""
    local = add_user(house.database_url, "carol")
    subjects = ("carol", "CAROL", "carol ", "carol.", "dave|x", "dave/x")
    for subject in subjects:
        valid = subject.strip() == subject
        assert status(house.clients[0], house.provider.token(sub=subject)) == (
            200 if valid else 401
        )
    names = [name for name in house.names() if name.startswith(("carol", "dave"))]
    assert len(names) == len(set(names)) == 1 + 5
    answer = house.clients[0].get("/users/carol", headers=bearer(local))
    assert answer.status_code == 200
    # An operator may give one a name, and also a token.
    house.operate("add", "erin", "--subject", "auth0|erin")
    token = house.provider.token(sub="auth0|erin")
    assert status(house.clients[0], token) == 200
    assert sum("auth0|erin" in line for line in house.operate("list").splitlines()) == 1
    rotated = house.operate("rotate", "erin").strip()
    assert [status(house.clients[1], one) for one in (token, rotated)] == [200, 200]


class Check(NamedTuple):
    """A service that takes a provider's tokens, and has a user of its own."""

    provider: Provider
    client: httpx2.Client
    token: str


ALGORITHMS = ("ES256", "ES384", "ES512", "EdDSA", "RS256", "PS384")


@pytest.fixture(scope="module")
def check(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Check]:
    url = new_database("sqlite")
    token = add_user(url, "local")
    with providing() as provider:
        jwks = []
        for algorithm in ALGORITHMS:
            provider.keys[algorithm] = new_key(algorithm)
            jwks.append(public_jwk(provider.keys[algorithm], algorithm, algorithm))
        provider.keys["any"] = new_key("RS256")
        jwks.append(public_jwk(provider.keys["any"], "any", "RS256"))
        del jwks[-1]["alg"]
        provider.keys["a"] = provider.keys["ES256"]
        provider.keys["weak"] = new_key("RS256", 1024)
        provider.keys["encrypts"] = new_key("RS256")
        provider.keys["secret"] = b"s" * 64
        provider.publish(
            *jwks,
            public_jwk(provider.keys["weak"], "weak", "RS256"),
            public_jwk(provider.keys["encrypts"], "encrypts", "RS256") | {"use": "enc"},
            {"kty": "oct", "kid": "secret", "k": segment(b"s" * 64)},
            {"kty": "unknown"},
        )
        log = tmp_path_factory.mktemp("check") / "log"
        with serving(url, log, **variables_for(provider)) as client:
            yield Check(provider, client, token)


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: Any, claims: Any, sign: Callable[[bytes], bytes]) -> str:
    """A token made by hand."""
    parts = f"{segment(json.dumps(header).encode())}.{segment(json.dumps(claims).encode())}"
    return f"{parts}.{segment(sign(parts.encode()))}"


def with_public_key_as_secret(provider: Provider) -> str:
    public = provider.keys["RS256"].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = {"alg": "HS256", "typ": "JWT", "kid": "RS256"}
    return signed(
        header, provider.claims(), lambda data: hmac.new(pem, data, hashlib.sha256).digest()
    )


def by_hand(provider: Provider, header: Any, claims: Any = None, key: str = "ES256") -> str:
    """A token with any header."""
    algorithm = jwt.get_algorithm_by_name("RS256" if key == "weak" else "ES256")
    claims = provider.claims() if claims is None else claims
    return signed(header, claims, lambda data: algorithm.sign(data, provider.keys[key]))


def with_a_key_of_its_own(provider: Provider) -> str:
    key = new_key("ES256")
    headers = {"jwk": public_jwk(key, "x", "ES256"), "jku": f"{provider.url}/certs"}
    return jwt.encode(provider.claims(), key, "ES256", headers)


ES256 = {"alg": "ES256", "kid": "ES256"}


GOOD: dict[str, Callable[[Provider], str]] = {
    **{name: partial(lambda name, p: p.token(name, name), name) for name in ALGORITHMS},
    "any of RSA": lambda p: p.token("any", "RS512"),
    "any of PSS": lambda p: p.token("any", "PS256"),
    "no kid": lambda p: jwt.encode(p.claims(), p.keys["EdDSA"], "EdDSA"),
    "audiences": lambda p: p.token("ES256", aud=["x", AUDIENCE]),
    "other audience": lambda p: p.token("ES256", aud="other"),
    "cognito": lambda p: p.token("ES256", aud=None, client_id=AUDIENCE, token_use="access"),
    "not before": lambda p: p.token("ES256", nbf=int(time.time())),
}
BAD: dict[str, Callable[[Provider], str]] = {
    "aud": lambda p: p.token("ES256", aud="https://other.example.com"),
    "aud in part": lambda p: p.token("ES256", aud=AUDIENCE[:-1]),
    "auds": lambda p: p.token("ES256", aud=["x"]),
    "no aud": lambda p: p.token("ES256", aud=None),
    "aud of a client": lambda p: p.token("ES256", aud="x", client_id=AUDIENCE),
    "odd aud": lambda p: p.token("ES256", aud={AUDIENCE: 1}),
    "odd auds": lambda p: p.token("ES256", aud=[[AUDIENCE]]),
    "iss": lambda p: p.token("ES256", iss="https://other.example.com"),
    "iss with slash": lambda p: p.token("ES256", iss=f"{p.url}/"),
    "no iss": lambda p: p.token("ES256", iss=None),
    "odd iss": lambda p: by_hand(p, ES256, p.claims() | {"iss": [p.url]}),
    "no exp": lambda p: p.token("ES256", exp=None),
    "odd exp": lambda p: p.token("ES256", exp="soon"),
    "endless exp": lambda p: p.token("ES256", exp=math.inf),
    "expired": lambda p: p.token("ES256", exp=int(time.time()) - 31),
    "not yet": lambda p: p.token("ES256", nbf=int(time.time()) + 3600),
    "no sub": lambda p: p.token("ES256", sub=None),
    "empty sub": lambda p: p.token("ES256", sub=""),
    "odd sub": lambda p: p.token("ES256", sub=["bob"]),
    "long sub": lambda p: p.token("ES256", sub="a" * 256),
    "NUL in sub": lambda p: p.token("ES256", sub="a\0b"),
    "alg none": lambda p: signed(ES256 | {"alg": "none"}, p.claims(), lambda _: b""),
    "alg none, signed": lambda p: by_hand(p, {"alg": "none", "kid": "ES256"}),
    "alg None": lambda p: by_hand(p, {"alg": "None", "kid": "ES256"}),
    "no alg": lambda p: by_hand(p, {"kid": "ES256"}),
    "odd alg": lambda p: by_hand(p, {"alg": ["ES256"], "kid": "ES256"}),
    "HS256": with_public_key_as_secret,
    "HS256 of the set": lambda p: jwt.encode(p.claims(), b"s" * 64, "HS256", {"kid": "secret"}),
    "other type of key": lambda p: by_hand(p, {"alg": "RS256", "kid": "ES256"}),
    "other curve": lambda p: by_hand(p, {"alg": "ES384", "kid": "ES256"}),
    "other hash": lambda p: p.token("RS256", "RS384"),
    "other padding": lambda p: p.token("RS256", "PS256"),
    "weak key": lambda p: by_hand(p, {"alg": "RS256", "kid": "weak"}, key="weak"),
    "key for encryption": lambda p: p.token("encrypts", "RS256"),
    "other key": lambda p: jwt.encode(p.claims(), new_key("ES256"), "ES256", {"kid": "ES256"}),
    "own key": with_a_key_of_its_own,
    "crit": lambda p: by_hand(p, {"alg": "ES256", "kid": "ES256", "crit": ["x"], "x": 1}),
    "odd kid": lambda p: by_hand(p, {"alg": "ES256", "kid": 5}),
    "odd header": lambda p: by_hand(p, ["ES256"]),
    "odd claims": lambda p: by_hand(p, ES256, ["iss"]),
    "deep header": lambda p: f"{segment(b'[' * 9000)}.e30.e30",
    "other claims": lambda p: ".".join(
        [
            p.token("ES256").split(".")[0],
            segment(json.dumps(p.claims(sub="root")).encode()),
            p.token("ES256").split(".")[2],
        ]
    ),
    "no signature": lambda p: p.token("ES256").rpartition(".")[0] + ".",
    "cut": lambda p: p.token("ES256")[:-2],
    "extended": lambda p: p.token("ES256") + "AAAA",
    "padded": lambda p: p.token("ES256") + "=",
    "four parts": lambda p: p.token("ES256") + ".e30",
    "dots": lambda p: "..",
    "latin": lambda p: p.token("ES256").replace(".", ".é", 1),
    "huge": lambda p: p.token("ES256", more="a" * 20_000),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_valid_token_comes_in(check: Check, name: str) -> None:
    """A token that the provider signed for this service opens it, beside its own tokens."""
    token = GOOD[name](check.provider)
    for _ in range(2):
        assert status(check.client, token) == status(check.client, check.token) == 200


@pytest.mark.parametrize("name", BAD)
def test_no_other_token_comes_in(check: Check, name: str) -> None:
    """Whatever isn't valid gets the same 401, which says that the token is invalid."""
    token = BAD[name](check.provider)
    raw = {b"authorization": f"Bearer {token}".encode("latin-1")}
    for _ in range(2):
        answer = check.client.get("/notes/", headers=raw)
        assert (answer.status_code, answer.headers["www-authenticate"]) == INVALID
        assert answer.json() == {"detail": "Not authenticated"}


@pytest.mark.parametrize(
    ("claim", "seconds", "expected"),
    [("exp", -29, 200), ("exp", -31, 401), ("nbf", 29, 200), ("nbf", 31, 401)],
)
def test_clocks_apart(check: Check, claim: str, seconds: int, expected: int) -> None:
    """The provider's clock may be half a minute before or behind."""
    while True:
        made = time.time()
        rounded = math.floor(made) if expected == 401 and claim == "exp" else math.ceil(made)
        if claim == "nbf" and expected == 200:
            rounded = math.floor(made)
        claims: dict[str, Any] = {claim: rounded + seconds}
        token = check.provider.token("ES256", **claims)
        got = status(check.client, token)
        # A second later it may be otherwise.
        if time.time() - made < 0.9 or got == expected:
            break
    assert got == expected


def test_unknown_users_are_refused_if_told_so(new_database: NewDatabase, tmp_path: Path) -> None:
    """With JWT_CREATE_USERS=0 a stranger's token gets 403, until an operator adds the user."""
    url = new_database("sqlite")
    with providing() as provider:
        variables = variables_for(provider, JWT_CREATE_USERS="0", ACCESS_CACHE_SECONDS="0")
        with serving(url, tmp_path / "log", **variables) as client:
            token = provider.token(sub="auth0|1")
            answer = client.get("/notes/", headers=bearer(token))
            assert (answer.status_code, answer.json()) == (
                403,
                {"detail": "There is no user for this token"},
            )
            assert status(client, provider.token(aud="x")) == 401
            document = client.get("/openapi.json").json()
            validate(document, cls=OpenAPIV31SpecValidator)
            for path, item in document["paths"].items():
                # Those of the example have the example's answers alone, for generated clients.
                for operation in item.values() if path != "/notes/" else ():
                    assert "no user" in operation["responses"]["403"]["description"]
            assert execute(url, "SELECT count(*) FROM users") == 0
            add = ("users", "add", "bob", "--subject", "auth0|1")
            assert operate(url, *add, **variables).returncode == 0
            assert status(client, token) == 200
            for again in (add, ("users", "add", "carol", "--subject", "auth0|1")):
                result = operate(url, *again, **variables)
                assert (result.returncode, result.stdout) == (1, "")
                assert "of this subject, already." in result.stderr
            assert "Set JWT_ISSUER" in operate(url, *add).stderr
            odd = operate(url, *add[:-1], "a\tb", **variables)
            assert "1 to 255" in odd.stderr


def test_a_rotated_key_counts(new_database: NewDatabase, tmp_path: Path) -> None:
    """A new key's token comes in at once. Names that nobody knows are asked for once a minute."""
    with providing() as provider:
        variables = variables_for(provider, JWT_JWKS_URL=f"{provider.url}/certs")
        with serving(new_database("sqlite"), tmp_path / "log", **variables) as client:
            old = provider.token()
            assert status(client, old) == 200
            provider.rotate("b")
            assert status(client, provider.token("b")) == 200
            # The provider has taken the first one back.
            assert status(client, old) == 401
            provider.keys["c"] = provider.keys["d"] = new_key("ES256")
            assert [status(client, provider.token(kid)) for kid in "cdc"] == [401] * 3
            assert len(provider.asked) == 2


def test_a_provider_that_hangs(new_database: NewDatabase, tmp_path: Path) -> None:
    """Without keys a provider's tokens get 503 in time, all by one query, and others are served."""
    url = new_database("sqlite")
    local = add_user(url, "local")
    with providing() as provider:
        provider.runs.clear()
        variables = variables_for(provider)
        with serving(url, tmp_path / "log", **variables) as client:
            tokens = [provider.token(sub=f"{number}") for number in range(10)]
            calls: list[Callable[[], httpx2.Response]] = [
                partial(client.get, "/notes/", headers=bearer(token)) for token in tokens
            ]
            for answer in at_once(calls):
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "5"
                assert answer.json() == {"detail": "The identity provider is unavailable"}
            assert status(client, tokens[0]) == 503
            assert status(client, provider.token(iss="x")) == 401
            assert len(provider.asked) == 1
            assert status(client, local) == 200
            provider.runs.set()
            poll(lambda: status(client, tokens[0]) == 200)


def test_a_provider_that_is_away(new_database: NewDatabase, tmp_path: Path) -> None:
    """Known keys go on while the provider is away. What needs others gets 503."""
    port = free_port()
    with providing(port) as provider:
        token, other = provider.token(), provider.token(sub="alice")
        provider.keys["b"] = new_key("ES256")
        unknown = provider.token("b")
        log = tmp_path / "log"
        with serving(new_database("sqlite"), log, **variables_for(provider)) as client:
            assert status(client, token) == 200
            provider.answers.clear()
            assert status(client, unknown) == 503
            assert [status(client, one) for one in (token, other)] == [200, 200]
            told = "the keys of JWT_ISSUER can't be read: HTTP Error 404"
            poll(lambda: told in log.read_text(), log.read_text)


@pytest.mark.parametrize("kind", ["text", "one line", "file"])
def test_a_public_key_without_a_provider(
    new_database: NewDatabase, tmp_path: Path, kind: str
) -> None:
    """With JWT_PUBLIC_KEY nothing is fetched."""
    provider = Provider(free_port())
    provider.rotate("a", "RS256")
    public = provider.keys["a"].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    (tmp_path / "key.pem").write_text(pem)
    value = {
        "text": pem,
        "one line": pem.replace("\n", "\\n"),
        "file": str(tmp_path / "key.pem"),
    }[kind]
    variables = variables_for(provider, JWT_PUBLIC_KEY=value)
    with serving(new_database("sqlite"), tmp_path / "log", **variables) as client:
        assert status(client, provider.token("a", "RS256")) == 200
        assert status(client, provider.token(None, "PS512")) == 200
        provider.keys["a"] = new_key("RS256")
        assert status(client, provider.token("a", "RS256")) == 401
        assert status(client, with_public_key_as_secret(provider_of_rsa(provider, public))) == 401


def provider_of_rsa(provider: Provider, public: Any) -> Provider:
    class Private:
        def public_key(self) -> Any:
            return public

    provider.keys["RS256"] = Private()
    return provider


@pytest.fixture(scope="module")
def process(new_database: NewDatabase) -> Iterator[Run]:
    """Runs a function with the database open, in a process that takes a provider's tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", new_database("sqlite"))
        for name, value in variables_for(Provider(1)).items():
            patch.setenv(name, value)
        with new_process() as run:
            yield run


async def find_many_times() -> tuple[list[bool], list[int], int]:
    from service.users import identities, keys

    provider = Provider(1)
    provider.rotate("a")
    verified = []

    class Counting(keys.Keys):
        async def find(self, kid: str | None, algorithm: str) -> keys.Key | None:
            verified.append(kid)
            return await super().find(kid, algorithm)

    kept = Counting(lambda: keys.parse_jwks(provider.answers["/realms/a/certs"]))
    found = identities.Identities(kept, seconds=0, capacity=3)
    counts, users, sizes = [], [], []

    async def find(token: str) -> None:
        for _ in range(3):
            users.append(await found.find(token) is not None)
        counts.append(len(verified))
        sizes.append(len(found))
        verified.clear()

    for number in range(5):
        await find(provider.token(sub=f"{number}"))
    # Within the leeway a token is verified each time.
    await find(provider.token(exp=int(time.time()) - 1))
    again = provider.token()
    await find(again)
    kept.version += 1
    await find(again)
    return users, counts, max(sizes)


def test_a_signature_is_verified_once(process: Run) -> None:
    """A token is verified once until it expires or the keys change, and few are remembered."""
    users, counts, size = process(find_many_times)
    assert all(users)
    assert counts == [1] * 5 + [3] + [1, 1]
    assert size == 3


async def know_until_refused() -> list[bool]:
    from service.users import identities, keys

    provider = Provider(1)
    provider.rotate("a")
    published = keys.parse_jwks(provider.answers["/realms/a/certs"])

    class Kept(keys.Keys):
        async def find(self, kid: str | None, algorithm: str) -> keys.Key | None:
            return published[0] if published else None

    kept = Kept(list)
    found = identities.Identities(kept, seconds=60, capacity=3)
    token = provider.token()
    steps = [found.known(token) is not None]
    for _ in range(2):
        steps.append(await found.find(token) is not None)
        steps.append(found.known(token) is not None)
        # The provider takes the key back.
        published.clear()
        kept.version += 1
    return steps


def test_a_refused_token_is_forgotten(process: Run) -> None:
    """Whose a token is, is known after it was let in, and no longer after it was refused."""
    assert process(know_until_refused) == [False, True, True, False, False]


async def take_a_key_back(again: bool) -> list[tuple[bool, int]]:
    from service.users import identities, keys

    provider = Provider(1)
    provider.rotate("a")
    reads = 0

    def load() -> list[keys.Key]:
        nonlocal reads
        reads += 1
        return keys.parse_jwks(provider.answers["/realms/a/certs"])

    kept = keys.Keys(load)
    found = identities.Identities(kept, seconds=60, capacity=3)
    token = provider.token()
    steps = []

    async def find() -> None:
        # The keys are read in the background.
        for _ in range(2):
            user = await found.find(token, again)
            if kept._task is not None:
                await kept._task
        steps.append((user is not None, reads))

    await find()
    await find()
    for kid in ("a", "b"):
        if kid == "b":
            provider.rotate(kid)
        kept._asked -= keys.REFRESH + 1
        await find()
    return steps


@pytest.mark.parametrize("again", [False, True])
def test_a_remembered_token_ends_with_its_key(process: Run, again: bool) -> None:
    """Where only known tokens come, requests and followers, the keys are read again as well."""
    # The last read is for the key's name, which has become an unknown one.
    expected = [(True, 1), (True, 1), (True, 2), (False, 4)]
    assert process(take_a_key_back, again) == expected


def test_names_of_subjects() -> None:
    """A subject gives names that commands take, of which each has one for this subject alone."""
    for subject in ("bob", "Bob", "auth0|1", "a" * 255, "~", "google-oauth2|1", "..", "a b"):
        names = list(names_for("https://a.example/", subject))
        assert names == [normalize(name) for name in names]
        assert len({*names, *names_for("https://b.example/", subject)}) >= 4
    assert next(names_for("https://a.example/", "248289dc")) == "248289dc"


def test_nothing_is_imported_without_a_provider() -> None:
    """Without JWT_ISSUER neither PyJWT nor cryptography is imported."""
    code = "import sys, service.app; sys.exit(bool({'jwt', 'cryptography'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, env=environment(ACCESS="token")).returncode == 0
