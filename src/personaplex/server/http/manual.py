"""`/docs`: the routes, written out by the server. `/openapi.json` is the same for programs.

FastAPI's own page loads its scripts and styles from another host; this one loads nothing and runs nothing. WebSockets
are in docs/server.md: OpenAPI has no words for them.
"""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64encode
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse

from personaplex.server.http.shapes import REFUSED

_STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 56rem; margin: auto; padding: 1rem; }
article { border-top: 1px solid #8884; padding: 0.5rem 0 1rem; }
h2 code { background: #8882; border-radius: 0.25rem; padding: 0 0.3rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 0.8rem 0.2rem 0; }
"""
_STYLE_HASH = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; frame-ancestors 'none'"


def router() -> APIRouter:
    """The page, and the description."""
    routes = APIRouter()

    # The description takes a quarter of a second to make, the first time: not in the event loop.
    @routes.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        described = await asyncio.to_thread(request.app.openapi)
        return HTMLResponse("".join(_page(described)), headers={"content-security-policy": POLICY})

    @routes.get("/openapi.json", include_in_schema=False)
    async def description(request: Request) -> JSONResponse:
        return JSONResponse(await asyncio.to_thread(request.app.openapi))

    return routes


def _page(schema: dict[str, Any]) -> Iterator[str]:
    title = escape(f"{schema['info']['title']} {schema['info']['version']}")
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
    yield "<meta name=viewport content='width=device-width'>"
    yield f"<style>{_STYLE}</style><body><h1>{title}</h1>"
    yield "<p>The same for programs: <a href=openapi.json>openapi.json</a>. WebSockets: docs/server.md.</p>"
    yield from _table(
        "Any of them may answer", [(str(code), escape(about["description"])) for code, about in REFUSED.items()]
    )
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            yield "<article>"
            yield f"<h2><code>{method.upper()}</code> {escape(path)}</h2>"
            yield f"<p>{escape(route.get('description', route.get('summary', '')))}</p>"
            yield from _table("Parameters", _parameters(schema, route))
            yield from _table("Body", _fields(schema, route))
            own = {code: about for code, about in route["responses"].items() if int(code) not in REFUSED}
            yield from _table("Answers", [(code, escape(about["description"])) for code, about in own.items()])
            yield "</article>"
    yield "</body></html>"


def _table(name: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    if rows:
        cells = "".join(
            f"<tr><th scope=row><code>{escape(first)}</code></th><td>{rest}</td></tr>" for first, rest in rows
        )
        yield f"<h3>{name}</h3><table>{cells}</table>"


def _parameters(schema: dict[str, Any], route: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["name"], _about(schema, one["schema"], one.get("required"))) for one in route.get("parameters", [])]


def _fields(schema: dict[str, Any], route: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for content in route.get("requestBody", {}).get("content", {}).values():
        body = _resolved(schema, content["schema"])
        required = body.get("required", [])
        rows += [(name, _about(schema, one, name in required)) for name, one in body.get("properties", {}).items()]
    return rows


def _about(schema: dict[str, Any], one: dict[str, Any], required: bool | None) -> str:
    words = [_type(schema, one), one.get("description", ""), "required" if required else ""]
    if one.get("default") is not None:
        words.append(f"default {one['default']}")
    return escape("; ".join(word for word in words if word))


def _type(schema: dict[str, Any], one: dict[str, Any]) -> str:
    if "anyOf" in one:
        return " or ".join(_type(schema, choice) for choice in one["anyOf"])
    if "$ref" in one:
        return str(_resolved(schema, one).get("title", "object"))
    if "enum" in one or "const" in one:
        return " | ".join(map(str, one.get("enum", [one.get("const")])))
    return str(one.get("format", one.get("type", "")))


def _resolved(schema: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    if "allOf" in one:
        return _resolved(schema, one["allOf"][0])
    if "$ref" not in one:
        return one
    found: dict[str, Any] = schema["components"]["schemas"][one["$ref"].rpartition("/")[2]]
    return found
