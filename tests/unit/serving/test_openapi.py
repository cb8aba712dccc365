"""The OpenAPI document and the server say the same: cases made from the one, answered by the other."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

CASES = 8
"""Per operation; `make fuzz-api` tries thousands against a server of its own."""

EXCLUDED = [
    # A valid document can still be refused: a currency without a rate, the same payment twice, an unknown feature.
    positive_data_acceptance,
    # This application asks nobody for a key; see test_auth.
    ignored_auth,
]


@pytest.fixture(scope="module")
def schema(shared_client: Any) -> Any:
    return schemathesis.openapi.from_dict(shared_client.get("/openapi.json").json())


def test_the_document_is_valid_and_every_answer_described(schema: Any, shared_client: Any) -> None:
    """Every operation says what it answers when all is well, and each problem it may answer is of one form."""
    schema.validate()
    document = shared_client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            for status, answer in operation["responses"].items():
                assert answer["description"], (path, method, status)
                if status.startswith("4"):
                    (content,) = answer["content"].items()
                    assert content == (
                        "application/problem+json",
                        {"schema": {"$ref": "#/components/schemas/Problem"}},
                    )
            if "requestBody" in operation:
                assert {"400", "408", "413"} <= set(operation["responses"]), path


def test_an_amount_is_a_number_or_a_text(shared_client: Any, payment: Any) -> None:
    """The document names both forms that are taken, and nothing beside them; both are the same money."""
    document = shared_client.get("/openapi.json").json()
    amount = document["components"]["schemas"]["Transaction"]["properties"]["amount"]
    assert "type" not in amount
    assert [form["type"] for form in amount["anyOf"]] == ["number", "string"]
    rows = [{**payment, "transaction_id": f"amount-{value}", "amount": value} for value in (129.9, "129.90")]
    reply = shared_client.post("/predict", json={"transactions": rows})
    assert reply.status_code == 200, reply.text
    assert len({score["fraud_score"] for score in reply.json()["scores"]}) == 1


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_as_documented(schema: Any, shared_client: Any, mode: GenerationMode) -> None:
    """Whatever is sent, valid or not, the answer's status, type, headers and body are those of the document."""
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=CASES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def try_one(case: Any) -> None:
            nonlocal tried
            tried += 1
            sent = case.as_transport_kwargs(base_url="http://test")
            sent["content"] = sent.pop("data", None)
            sent = {name: value for name, value in sent.items() if value is not None and name != "cookies"}
            reply = shared_client.run(shared_client._http.request(**sent))
            case.validate_response(reply, excluded_checks=EXCLUDED)

        # What takes no input cannot be sent wrong input.
        with suppress(Unsatisfiable):
            try_one()
    assert tried > 100
