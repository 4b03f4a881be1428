"""Every address against its own description: thousands of strange requests, and never an answer that it does not promise."""

import os
from pathlib import Path

import pytest

pytest.importorskip("schemathesis", reason="checks of the OpenAPI document need the extra [browser]: make test-browser")

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

pytestmark = pytest.mark.browser  # it takes its time, and a package of its own
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = int(os.environ.get("TUBELET_SCHEMA_EXAMPLES", "20"))  # of each address


@pytest.fixture(scope="module")
def described(model_folders, indexed, tmp_path_factory, motion_folder: Path):
    from starlette.testclient import TestClient

    from tubelet.web.app import make_app
    from tubelet.web.desk import Options
    from tubelet.web.library import Library
    from tubelet.web.uploads import Limits, Uploads
    from tubelet.web.work import open_model

    served = [open_model(path, name, "cpu") for name, path in model_folders.items()]
    library = Library(str(indexed[2]), "cpu")
    app = make_app(served, Uploads(tmp_path_factory.mktemp("uploads"), Limits(megabytes=1)), Options(hosts=("*",)), library)
    with TestClient(app) as client:
        video = sorted(motion_folder.glob("val/*/*.mp4"))[0]
        uploaded = client.post("/api/videos", content=video.read_bytes()).json()["id"]
        schema = schemathesis.openapi.from_asgi("/openapi.json", app)

        @schema.hook("map_path_parameters")
        def known(context, path_parameters):  # half of the ids are of a video that is there
            for name, value in (("id", uploaded), ("key", next(iter(library.paths)))):
                if path_parameters and name in path_parameters and len(str(path_parameters[name])) % 2:
                    path_parameters[name] = value
            return path_parameters

        yield schema


def test_the_api_keeps_its_word(described):
    operations = [found.ok() for found in described.get_all_operations()]
    assert {operation.label for operation in operations} >= {
        "POST /api/videos",
        "GET /api/videos/{id}/prediction",
        "GET /metrics",
    }
    for operation in operations:

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def keeps_its_word(case):
            case.call_and_validate(checks=CHECKS)

        keeps_its_word()
