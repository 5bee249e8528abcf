"""The whole HTTP API, as its own description describes it, under schemathesis: requests that fit, and that do not.

Every answer is one that the description knows, in the form it promises; nothing is a server error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from personaplex.server.app import create_app
from personaplex.server.service import Service
from tests.cascade_engines import Engines, LevelDetector
from tests.conftest import SOAK
from tests.server.cascade import Stage
from tests.server.conftest import scripted_backends, serving

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DESCRIBED = schemathesis.openapi.from_dict(create_app(Service.of(scripted_backends())).openapi())
OPERATIONS: list[Any] = [found.ok() for found in DESCRIBED.get_all_operations()]  # type: ignore[union-attr]

FALLIBLE = [one for one in OPERATIONS if one.body or one.query or "{id}" in one.path]
"""What takes anything that could be wrong."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("personaplex.cascade.transcription.new_detector", LevelDetector)
        with serving(Stage(Engines(patch)).service()) as found:
            yield found


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_requests_that_fit(address: str, operation: Any) -> None:
    _try(address, operation, GenerationMode.POSITIVE)


@pytest.mark.parametrize("operation", FALLIBLE, ids=lambda operation: operation.label)
def test_requests_that_do_not(address: str, operation: Any) -> None:
    _try(address, operation, GenerationMode.NEGATIVE)


def _try(address: str, operation: Any, mode: GenerationMode) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=100 if SOAK else 6, suppress_health_check=list(HealthCheck), deadline=None, derandomize=True)
    def try_it(case: Any) -> None:
        case.call_and_validate(base_url=address, checks=CHECKS)

    try_it()


def test_there_is_something_to_try() -> None:
    labels = {operation.label for operation in OPERATIONS}
    assert {"POST /chat", "POST /v1/respond", "GET /v1/history/{id}", "POST /v1/audio/speech"} <= labels
