"""The OpenAPI document: valid, whole, and the example's where clients are generated from it."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from service.app import RESOURCES, document
from service.openapi.document import document as make_document
from tests.conftest import Server
from tests.support import databases
from tests.support.servers import nowhere, serving


def test_the_document_is_valid() -> None:
    """The document is OpenAPI 3.1.0 by the specification's own schema."""
    validate(document, cls=OpenAPIV31SpecValidator)
    assert document["openapi"] == "3.1.0"


def test_the_document_is_served(service: httpx2.Client) -> None:
    """`/openapi.json` answers with the document."""
    answer = service.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == document


def test_every_route_is_described() -> None:
    """Each path and method of the resources is in the document, and nothing else."""
    routed = {
        (path.path, method.lower())
        for resource in RESOURCES
        for path in resource.paths
        for method in path.operations
    }
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert described == routed


def test_everything_is_explained() -> None:
    """Operations, tags, parameters, headers and fields have a description, and an example."""
    tags = {tag["name"] for tag in document["tags"] if tag["description"]}
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["description"]
            assert operation["summary"]
            assert set(operation["tags"]) <= tags
            assert operation["tags"]
            headers = [
                header
                for answer in operation["responses"].values()
                for header in answer.get("headers", {}).values()
            ]
            for each in [*operation["parameters"], *headers]:
                assert each["description"]
                assert "example" in each or each["schema"]["examples"], each
    for name, schema in document["components"]["schemas"].items():
        for field, value in schema["properties"].items():
            assert value["description"], f"{name}.{field}"
            # An array's examples are those of its items.
            assert value.get("examples") or "items" in value, f"{name}.{field}"


def described(method: str, path: str, name: str) -> re.Pattern[str]:
    """The pattern of an operation's parameter."""
    parameters = document["paths"][path][method]["parameters"]
    (schema,) = (each["schema"] for each in parameters if each["name"] == name)
    return re.compile(schema["pattern"])


@pytest.mark.parametrize(
    "key", ["a", "8e03-~!", '"a b"', "", '""', '"', 'a"b', "a b", "a,b", '"a,b"', "é", "k" * 256]
)
def test_the_pattern_of_keys_is_the_services(service: httpx2.Client, key: str) -> None:
    """The service takes an `Idempotency-Key` if, and only if, the document's pattern does."""
    matches = described("post", "/notes/", "Idempotency-Key").search(key) is not None
    note = {"text": "", "completed": True}
    answer = service.post("/notes/", json=note, headers={b"idempotency-key": key.encode()})
    assert answer.status_code == (200 if matches else 422)


@pytest.mark.parametrize("value", ["TAG", "W/TAG", "*", '"a", TAG', '"a",W/TAG', "bare", "TAG x"])
def test_the_pattern_of_conditions_is_the_services(service: httpx2.Client, value: str) -> None:
    """A condition that has the document's pattern is seen; any other matches nothing."""
    path = f"/notes/{service.post('/notes/', json={'text': '', 'completed': True}).json()['id']}"
    tag = service.get(path).headers["etag"]
    value = value.replace("TAG", tag).replace("bare", tag.strip('"'))
    matches = described("get", "/notes/{note_id}", "If-None-Match").search(value) is not None
    answer = service.get(path, headers={"if-none-match": value})
    assert answer.status_code == (304 if matches else 200)


def test_the_pattern_of_texts_is_the_services(service: httpx2.Client) -> None:
    """The service takes any text but one with NUL, as the document says."""
    schema = document["components"]["schemas"]["NoteIn"]
    pattern = re.compile(schema["properties"]["text"]["pattern"])
    for text in ("", "a\nb\n", "\x01\x1f", "\U0001f600", "\0", "a\0b", "\na\0"):
        answer = service.post("/notes/", json={"text": text, "completed": True})
        assert answer.status_code == (200 if pattern.search(text) else 422), repr(text)


def test_errors_have_the_shape_of_the_document(service: httpx2.Client) -> None:
    """The body of a 422 has the properties that HTTPValidationError promises."""
    answer = service.post("/notes/", json={})
    schemas = document["components"]["schemas"]
    assert set(answer.json()) == set(schemas["HTTPValidationError"]["properties"])
    for detail in answer.json()["detail"]:
        assert set(schemas["ValidationError"]["required"]) <= set(detail)
        assert set(detail) <= set(schemas["ValidationError"]["properties"])


def test_the_example_of_an_error_is_true(service: httpx2.Client) -> None:
    """The example of a 422 is what the service says of that input."""
    properties = document["components"]["schemas"]["ValidationError"]["properties"]
    example = {name: value["examples"][0] for name, value in properties.items()}
    answer = service.get("/notes/", params={example["loc"][1]: example["input"]})
    assert answer.json() == {"detail": [example]}


def test_the_length_of_a_search_is_the_documents(service: httpx2.Client) -> None:
    """A search may have as many characters as the document says, and no more."""
    parameters = document["paths"]["/notes/"]["get"]["parameters"]
    (q,) = (each["schema"] for each in parameters if each["name"] == "q")
    for length, status in ((q["maxLength"], 200), (q["maxLength"] + 1, 422)):
        assert service.get("/notes/", params={"q": "\u0390" * length}).status_code == status


def test_the_examples_operations_have_one_error() -> None:
    """Where tokens are needed too, generated clients know no error but the example's there."""
    for by_token in (False, True):
        described = make_document(RESOURCES, by_token)["paths"]["/notes/"]
        for operation in described.values():
            assert set(operation["responses"]) <= {"200", "304", "422"}


# What the document says of notes and users is held against the service.

NOTE = {"text": "a", "completed": True}


def operations(client: httpx2.Client) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The method, path and description of the operations on notes and users that are served."""
    for path, item in client.get("/openapi.json").json()["paths"].items():
        if not path.startswith(("/notes/", "/users/")):
            continue
        for method, operation in item.items():
            yield method.upper(), path, operation


def ask(client: httpx2.Client, method: str, path: str, **options: Any) -> httpx2.Response:
    """Sends a request that is good but for the options."""
    if method in ("POST", "PUT", "PATCH") and "content" not in options:
        options.setdefault("json", [NOTE] if path == "/notes/batch" else NOTE)
    path = path.replace("{note_id}", "1").replace("{username}", "bob")
    return client.request(method, path, **options)


def store(database_url: str, values: Iterable[Any] = ()) -> None:
    """Stores two notes and bob, and also a note or a user with each value that may be its key."""
    ids = {2**40, *(value for value in values if isinstance(value, int) and 0 < value < 2**53)}
    names = {"bob", *(value.lower() for value in values if isinstance(value, str))}
    notes = [f"({note_id}, 'a', true)" for note_id in ids - {1, 2}]
    databases.clear(database_url)
    databases.execute(
        database_url,
        "INSERT INTO notes (text, completed) VALUES ('a', true), ('b', false)",
        f"INSERT INTO notes (id, text, completed) VALUES {', '.join(notes)}",
    )
    if "/users/{username}" in document["paths"]:
        columns = "username, is_active, created_at, token_sha256"
        values = ", ".join(f"('{name}', true, 0, '{name}')" for name in names if len(name) <= 64)
        databases.execute(database_url, f"INSERT INTO users ({columns}) VALUES {values}")


def fits(schema: dict[str, Any], value: object) -> bool:
    return bool(OAS31Validator({**schema, "components": document["components"]}).is_valid(value))


LIMITS = ("minimum", "maximum", "minLength", "maxLength")


def values_about(schema: dict[str, Any]) -> list[Any]:
    """Values at the limits that the schema has, or may have lost, and about them."""
    if schema["type"] == "boolean":
        return [True, False, "", "maybe", 2]
    limits = {1, 64, 200, 255, 1000, *(schema[key] for key in LIMITS if key in schema)}
    if schema["type"] == "integer":
        around = {limit + step for limit in {*limits, 2**53} for step in (-1, 0, 1)}
        return [*around, "", "x", "1.5"]
    texts = {"a" * (limit + step) for limit in limits for step in (-1, 0, 1)}
    return [*texts, "asc", "desc", "ASC", "a.b_c-9", "a@b", *schema.get("enum", ())]


def is_taken(
    client: httpx2.Client, method: str, path: str, parameter: dict[str, Any], value: object
) -> bool:
    """Whether the service takes a parameter's value. `store` has stored the keys in paths."""
    name, place = parameter["name"], parameter["in"]
    if place == "path":
        path = path.replace(f"{{{name}}}", quote(str(value), safe=""))
        options = {}
    else:
        options = {"params" if place == "query" else "headers": {name: str(value)}}
    status = ask(client, method, path, **options).status_code
    assert status in (200, 204, 304, 404, 412, 422)
    return status != (404 if place == "path" else 422)


CONDITIONS = {"If-Match", "If-None-Match"}


def test_parameters_are_those_of_the_document(server: Server) -> None:
    """A parameter's value is taken if it fits the document's schema, and refused otherwise."""
    for method, path, operation in operations(server.client):
        for parameter in operation["parameters"]:
            schema, place = parameter["schema"], parameter["in"]
            assert parameter["required"] == (place == "path")
            values = values_about(schema)
            store(server.database_url, values)
            for value in values:
                # Without its last part, a path is another one.
                if value != "" or place != "path":
                    taken = is_taken(server.client, method, path, parameter, value)
                    # A malformed condition names no tag, and is no error.
                    expected = parameter["name"] in CONDITIONS or fits(schema, value)
                    assert taken == expected, (method, path, parameter, value)


def test_defaults_are_those_of_the_document(server: Server) -> None:
    """A parameter that is left out counts as its default."""
    store(server.database_url)
    parameters = document["paths"]["/notes/"]["get"]["parameters"]
    defaults = {
        each["name"]: each["schema"]["default"]
        for each in parameters
        if "default" in each["schema"]
    }
    assert set(defaults) == {"order"}
    plain = server.client.get("/notes/")
    assert server.client.get("/notes/", params=defaults).content == plain.content


# Without what pydantic takes for a boolean though the document has booleans only: 1, "yes".
BOOLEANS: list[Any] = [True, False, None, [], {}, 2, "maybe"]
TEXTS: list[Any] = ["a", "", 1, None, []]
BODIES: list[Any] = [
    *({}, [], "a", 1, None, {**NOTE, "x": 1}),
    *({"text": text} for text in TEXTS),
    *({"completed": completed} for completed in BOOLEANS),
    *({"text": text, "completed": completed} for text in TEXTS for completed in BOOLEANS),
]


def test_bodies_are_those_of_the_document(server: Server) -> None:
    """A body is taken if it fits the document's schema, and refused otherwise."""
    store(server.database_url)
    batches = [*([body] for body in BODIES), *([NOTE] * count for count in (2, 999, 1000, 1001))]
    for method, path, operation in operations(server.client):
        if "requestBody" in operation:
            assert operation["requestBody"]["required"] is True
            assert ask(server.client, method, path, content=b"").status_code == 422
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            for body in (*BODIES, *batches):
                status = ask(server.client, method, path, json=body).status_code
                assert status == (200 if fits(schema, body) else 422), (method, path, body)


# How an answer of each status is had from any operation that has it.
PROVOKED: dict[str, dict[str, Any]] = {
    "200": {"params": {"limit": 1}, "headers": {"prefer": "count=exact"}},
    "204": {"headers": {"prefer": "return=minimal"}},
    "304": {"headers": {"if-none-match": "*"}},
    "400": {"content": b"\xff", "headers": {"content-type": "application/json"}},
    "412": {"headers": {"if-match": '"other"'}},
    "413": {"content": b" " * 1_048_577},
    "415": {"headers": {"content-encoding": "gzip"}},
    "422": {"json": [], "params": {"limit": 0}},
}
ERROR = {"$ref": "#/components/schemas/Error"}
# What any answer may have; all other headers are an operation's own.
ANYWHERE = {
    *("connection", "content-length", "content-type", "date", "server", "transfer-encoding"),
    *("vary", "x-content-type-options", "x-request-id"),
}


def assert_described(answer: httpx2.Response, operation: dict[str, Any]) -> None:
    """AssertionError unless the answer has the body and the headers that are described.

    For the example's operations some statuses are described in words only.
    """
    status = str(answer.status_code)
    if status not in operation["responses"]:
        assert status in operation["description"], answer.request
        assert answer.status_code == 204 or fits(ERROR, answer.json())
        return
    described = operation["responses"][status]
    headers = {name.lower(): header for name, header in described.get("headers", {}).items()}
    assert set(answer.headers) - ANYWHERE == set(headers), answer.request
    for name, header in headers.items():
        kind = "integer" if answer.headers[name].isdecimal() else "string"
        assert header["schema"]["type"] == kind
    if "content" in described:
        assert fits(described["content"]["application/json"]["schema"], answer.json())
    else:
        assert answer.content == b""


def test_answers_are_those_of_the_document(server: Server) -> None:
    """An operation has the statuses of the document, and each answer its headers and body."""
    for method, path, operation in operations(server.client):
        had = {"503"}
        missing = path.replace("{note_id}", "9").replace("{username}", "nobody")
        for status, options in (*PROVOKED.items(), ("404", {})):
            store(server.database_url)
            answer = ask(server.client, method, missing if status == "404" else path, **options)
            if str(answer.status_code) == status:
                had.add(status)
                assert_described(answer, operation)
        assert set(operation["responses"]) <= had


def test_trouble_is_that_of_the_document(tmp_path: Path) -> None:
    """Without the database each operation has the 503 of the document."""
    with serving(nowhere(), tmp_path / "log") as client:
        for method, path, operation in operations(client):
            answer = ask(client, method, path)
            assert answer.status_code == 503
            assert_described(answer, operation)
