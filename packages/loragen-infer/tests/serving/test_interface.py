"""The description of the interface says what the server does, and its page works offline and beside a token."""

import re
import shutil
from urllib.parse import urlsplit

import pytest
from loragen_infer import AdapterStore

pytest.importorskip("litserve")
from loragen_infer.serving.config import ServeConfig
from loragen_infer.serving.server import make_app
from starlette.testclient import TestClient

from .test_processes import start

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def client(generator, tmp_path):
    config = ServeConfig(model="m", token="secret", max_body_bytes=2000)
    with TestClient(make_app(AdapterStore(tmp_path / "adapters", generator), config)) as client:
        yield client


def test_every_answer_is_described_as_it_is(client):
    schema = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in str(schema)
    asked = {
        ("post", "/adapters"): [
            (401, {"json": {"prompts": ["a"]}, "headers": {}}),
            (400, {"content": b"[" * 1900}),
            (413, {"content": b" " * 2001}),
            (422, {"content": b"{}"}),
        ],
        ("get", "/adapters/{adapter_id}"): [(401, {"headers": {}}), (404, {}), (422, {"params": {"format": "exe"}})],
        ("get", "/metrics"): [(401, {"headers": {}})],
    }
    for (method, path), cases in asked.items():
        operation = schema["paths"][path][method]
        assert operation["security"] == [{"token": []}]
        for status, options in cases:
            options = {"headers": {"authorization": "Bearer secret", "content-type": "application/json"}, **options}
            answer = client.request(method, path.format(adapter_id="0" * 16), **options)
            assert answer.status_code == status
            assert isinstance(answer.json()["detail"], str)
            described = operation["responses"][str(status)]["content"]["application/json"]["schema"]
            assert described == {"$ref": "#/components/schemas/Problem"}
    assert {"200", "408", "429", "503", "507"} <= set(schema["paths"]["/adapters"]["post"]["responses"])
    assert "502" not in schema["paths"]["/adapters"]["post"]["responses"]
    assert "security" not in schema["paths"]["/health"]["get"]
    assert schema["components"]["schemas"]["Problem"]["properties"]["detail"]["type"] == "string"


def test_all_parts_of_the_page_come_from_the_server_and_need_no_token(client):
    page = client.get("/docs")
    parts = [urlsplit(url) for url in re.findall(r'(?:src|href)="([^"]+)"', page.text)]
    assert len(parts) == 3
    for part in parts:
        assert part.netloc == "testserver"
        assert len(client.get(part.path).content) > 100
    assert client.get("/docs-of-another").status_code == 401
    assert client.get("/redoc", headers={"authorization": "Bearer secret"}).status_code == 404


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
def test_the_page_in_a_browser_asks_the_server_with_its_token(zoo, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    server, url = start(zoo.file, tmp_path / "adapters", "--token", "secret")
    asked: list[str] = []
    try:
        with playwright.sync_playwright() as runner:
            browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            tab = browser.new_page()
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto(f"{url}/docs")
            tab.click("button.authorize")
            tab.fill(".auth-container input", "secret")
            tab.click(".auth-btn-wrapper button.authorize")
            tab.click(".auth-btn-wrapper button.btn-done")
            tab.click("#operations-default-show_metrics_metrics_get .opblock-summary-control")
            tab.click("#operations-default-show_metrics_metrics_get .execute")
            playwright.expect(tab.locator(".live-responses-table .microlight").first).to_contain_text(
                "loragen_requests"
            )
            browser.close()
    finally:
        server.terminate()
        server.wait(30)
    assert [place for place in asked if not place.startswith((url, "data:", "blob:"))] == []
