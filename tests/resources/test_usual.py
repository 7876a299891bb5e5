"""The usual operations of each resource of the service, and of the shop, on each database."""

import httpx2
import pytest

from service.app import document
from tests.resources.conftest import Shop
from tests.support import shop
from tests.support.usual import LAWS, Law, Usual, empty, find


def test_notes_have_all_usual_operations() -> None:
    """The laws find the resources that they are about."""
    assert [usual.path for usual in find(document)] == ["/notes/"]


@pytest.mark.parametrize("usual", find(document), ids=lambda usual: usual.path)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_usual_operations(law: Law, usual: Usual, service: httpx2.Client) -> None:
    """What holds for each resource; the law says what."""
    law(service, usual)


@pytest.mark.parametrize("usual", find(shop.document), ids=lambda usual: usual.path)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_usual_operations_of_the_shop(law: Law, usual: Usual, open_shop: Shop) -> None:
    """What holds for each resource holds for those that use what notes don't."""
    empty(open_shop.database_url, usual)
    law(open_shop.client, usual)
