"""The page's files and what it asks of the server; its modules in Node. What it does is tests/e2e/test_page.py."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from personaplex.server import page
from personaplex.server.app import create_app
from personaplex.server.service import Service
from tests.server.conftest import settings

Make = Callable[..., Service]
STATIC = Path(page.__file__).parent / "static"
MODULES = Path(__file__).parent / "page"
TOKEN = "a-good-long-token"


def client(service: Service) -> TestClient:
    return TestClient(create_app(service), base_url="http://127.0.0.1:8998", raise_server_exceptions=False)


@pytest.fixture
def http(scripted_service: Make) -> TestClient:
    return client(scripted_service())


def test_the_modules_alone() -> None:
    node = shutil.which("node")
    assert node, "no Node.js here; install it with: sudo apt-get install --no-install-recommends nodejs"
    files = sorted(map(str, MODULES.glob("*.test.js")))
    tests = [node, "--test", "--test-reporter=tap", *files]
    done = subprocess.run(tests, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    written = sum(len(re.findall(r"^\s*test\(", Path(file).read_text(), re.MULTILINE)) for file in files)
    assert passed and int(passed[1]) >= written > 30, "Node would also be content with no test at all"


def test_every_file_of_the_page_is_served_and_says_what_may_be_loaded(http: TestClient) -> None:
    names = [path.name for path in STATIC.iterdir() if path.suffix != ".json"]
    for address in ["/", *(f"/page/{name}" for name in names)]:
        answer = http.get(address)
        assert answer.status_code == 200, address
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "'self'" in policy and "*" not in policy and "http" not in policy
        again = http.get(address, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304 and again.content == b""
    assert http.get("/page/jitter.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/package.json", "/page/__init__.py", "/page/..%2f__init__.py", "/page/%2e%2e/settings.py",
     "/page/index.html%00", "/page/nothing.js"],
)  # fmt: skip
def test_nothing_else_is(http: TestClient, path: str) -> None:
    assert http.get(path).status_code == 404


def test_the_page_names_no_other_host_and_nothing_inline() -> None:
    for path in STATIC.iterdir():
        text = path.read_text()
        hosts = set(re.findall(r"https?://[^\s'\"`<>)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert hosts <= {"http://localhost"}, path.name  # which an explanation tells people to open
        assert "innerHTML" not in text and "eval(" not in text and " style=" not in text
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=", text), path.name


def test_what_it_offers(http: TestClient) -> None:
    about = http.get("/about").json()
    assert about["model"] == "scripted" and about["modes"] == ["duplex", "cascade"]
    assert about["voices"] == {"duplex": ["NATF0", "NATM1"], "cascade": ["slt", "rms"]}
    sage = next(persona for persona in about["personas"] if persona["name"] == "sage")
    assert sage["voices"] == ["NATM1", "VARM1"] and sage["prompt"].startswith("Your name is Sage.")
    assert about["sampling"]["text_temperature"] == 0.7
    assert about["history"] == {"kept": False, "days": None}


def test_it_says_that_transcripts_are_kept(scripted_service: Make) -> None:
    kept = client(scripted_service(settings=settings(history="sqlite://", retention_days=7.0)))
    assert kept.get("/about").json()["history"] == {"kept": True, "days": 7.0}


def test_tokens_of_a_role(http: TestClient, tiny_service: Service) -> None:
    assert http.post("/about/role", json={"text": "Be kind."}).json() == {"tokens": None, "most": None}
    tiny = client(tiny_service)
    engine = tiny_service.backends.duplex
    text = "You work for Blue Door Bakery."
    counted = tiny.post("/about/role", json={"text": text}).json()
    assert counted == {"tokens": len(engine.model.tokenizer.role_tokens(text)), "most": 200}  # type: ignore[union-attr]
    assert tiny.post("/about/role", json={"text": ""}).json()["tokens"] == 0
    assert tiny.post("/about/role", json={"text": "a" * 20_001}).status_code == 400


def test_files_are_open_and_the_rest_wants_the_token(scripted_service: Make) -> None:
    http = client(scripted_service(settings=settings(token=TOKEN)))
    assert http.get("/").status_code == http.get("/page/page.js").status_code == 200
    assert http.get("/about").status_code == http.post("/about/role", json={"text": ""}).status_code == 401
    assert http.get("/about", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_while_the_model_loads_the_page_is_there_and_says_so() -> None:
    http = TestClient(create_app(Service(settings(), lambda: pytest.fail("not started"))), base_url="http://127.0.0.1")
    assert http.get("/").status_code == 200
    loading = http.get("/about")
    assert loading.status_code == 503 and loading.json()["error"]["code"] == "unavailable"
