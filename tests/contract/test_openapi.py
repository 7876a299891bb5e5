"""The OpenAPI document: valid, whole, and the example's where clients are generated from it."""

from typing import Any

import httpx2
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from benchmarks.fastapi_twin import app as twin
from service.app import RESOURCES, document
from tests.conftest import Pair
from tests.support.raw import send


def holds(value: Any, other: Any) -> bool:
    """Whether the value has everything of the other, with the same names."""
    if isinstance(other, dict):
        return isinstance(value, dict) and all(
            key in value and holds(value[key], other[key]) for key in other
        )
    if isinstance(other, list):
        return isinstance(value, list) and sorted(map(str, value)) == sorted(map(str, other))
    return bool(value == other)


def test_the_document_is_valid() -> None:
    """The document is OpenAPI 3.1.0 by the specification's own schema."""
    validate(document, cls=OpenAPIV31SpecValidator)
    assert document["openapi"] == "3.1.0"


def test_the_document_is_served(service: httpx2.Client) -> None:
    """`/openapi.json` answers with the document."""
    answer = service.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == document


def test_the_document_holds_the_examples() -> None:
    """All that a client generator takes from the example's document stands here too."""
    example = twin.openapi()
    del example["info"]
    assert holds(document, example)
    for name, schema in example["components"]["schemas"].items():
        mine = document["components"]["schemas"][name]
        assert list(mine["properties"]) == list(schema["properties"])
        assert set(mine.get("required", [])) == set(schema.get("required", []))


def test_every_route_is_described() -> None:
    """Each path and method of the resources is in the document, and nothing else."""
    routed = {
        (path.path, method.lower())
        for resource in RESOURCES
        for path in resource.paths
        for method in path.handlers
    }
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert described == routed


def test_errors_have_the_shape_of_the_document(pair: Pair) -> None:
    """The body of a 422 has the properties that HTTPValidationError promises."""
    answer = send(pair.service, "POST", "/notes/", b"{}", {"content-type": "application/json"})
    schemas = document["components"]["schemas"]
    assert set(answer.json()) == set(schemas["HTTPValidationError"]["properties"])
    for detail in answer.json()["detail"]:
        assert set(schemas["ValidationError"]["required"]) <= set(detail)
        assert set(detail) <= set(schemas["ValidationError"]["properties"])


def test_the_length_of_a_search_is_the_documents(service: httpx2.Client) -> None:
    """A search may have as many characters as the document says, and no more."""
    parameters = document["paths"]["/notes/"]["get"]["parameters"]
    (q,) = (each["schema"] for each in parameters if each["name"] == "q")
    for length, status in ((q["maxLength"], 200), (q["maxLength"] + 1, 422)):
        assert service.get("/notes/", params={"q": "\u0390" * length}).status_code == status
