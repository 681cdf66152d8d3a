"""Every operation of the server's own OpenAPI, fuzzed: no answer is a 5xx, and each is as documented."""

import itertools

import pytest
from http_server import encoded, message, png, serving
from hypothesis import HealthCheck, given, settings

from trace_vlm.serve.app import ERRORS

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis to fuzz the server")
PARTS = ("status_code_conformance", "content_type_conformance", "response_headers_conformance",
         "response_schema_conformance", "not_a_server_error")  # fmt: skip
PICTURE = encoded(png())


def with_picture(body, number):
    """Half of the bodies get a picture and few tokens, so that the model is reached."""
    if isinstance(body, dict) and number % 2:
        if isinstance(body.get("messages"), list):
            return {**body, "messages": message(), "model": "tiny", "max_tokens": 2, "max_completion_tokens": 2}
        if "image" in body:
            return {**body, "image": PICTURE, "max_new_tokens": 2}
    return body


@pytest.mark.parametrize("examples", [25, pytest.param(1300, marks=pytest.mark.slow)])
def test_every_answer_is_documented_and_none_is_a_failure(tiny, examples):
    """With 1300 examples, both ways of making them and four kinds of body: more than 5,000 requests that ask."""
    schemathesis.checks.load_all_checks()
    checks = schemathesis.checks.CHECKS.get_by_names(PARTS)
    counts, numbers = dict.fromkeys([200, *ERRORS], 0), itertools.count()
    with serving(tiny) as client:
        schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
        for operation in (found.ok() for found in schema.get_all_operations()):
            most = examples * (2 if operation.path == "/v1/point" else 1) if operation.body else 2
            for mode in schemathesis.GenerationMode if operation.body else [schemathesis.GenerationMode.POSITIVE]:

                @settings(max_examples=most, deadline=None, database=None, derandomize=True,
                          suppress_health_check=list(HealthCheck))  # fmt: skip
                @given(case=operation.as_strategy(generation_mode=mode))
                def check(case):
                    case.body = with_picture(case.body, next(numbers))
                    response = case.call()
                    counts[response.status_code] += 1
                    case.validate_response(response, checks=checks)
                    if response.status_code != 200:
                        assert "\n" not in response.json()["error"]["message"]

                check()
    print(counts)
    assert counts[200] > examples and counts[400] > examples and sum(counts.values()) > 4 * examples
