"""What ``/openapi.json`` says of the interface, and its page ``/docs``, which loads nothing from elsewhere."""

from typing import Any

from fastapi import FastAPI
from fastapi_swagger import patch_fastapi

from loragen_infer.serving.config import ServeConfig

__all__ = ["is_open_to_all", "show_interface"]

_DOCS, _SCHEMA = "/docs", "/openapi.json"
_PROBLEMS = {
    400: "The body is no JSON that can be read.",
    401: "The token is missing or wrong.",
    404: "There is no adapter of that id.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    422: "What is asked for is wrong.",
    429: "Too many requests are open; try again later.",
    502: "vLLM did not load the adapter, which is kept.",
    503: "The machine refuses, such as memory, or a store that cannot be read.",
    507: "The disk is full.",
}
_PROBLEM = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string", "description": "What is wrong, in one sentence."}},
}


def is_open_to_all(path: str) -> bool:
    """Return whether a request of that path needs no token: whether the server is up, and how to ask it."""
    return path in ("/health", _DOCS, _SCHEMA) or path.startswith(f"{_DOCS}/")


def show_interface(app: FastAPI, config: ServeConfig) -> None:
    """Describe every answer of ``app`` in its schema, and show that on a page whose parts come from ``app`` alone."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _describe(generated(), config)  # which the application keeps
        return generated()

    app.openapi = openapi  # type: ignore[method-assign]
    # FastAPI's own pages load their scripts from a content network.
    app.router.routes[:] = [
        route for route in app.router.routes if not getattr(route, "path", "").startswith((_DOCS, "/redoc"))
    ]
    app.docs_url = app.swagger_ui_oauth2_redirect_url = None
    patch_fastapi(
        app,
        docs_url=_DOCS,
        redirect_from_root_to_docs=False,
        swagger_js_url=f"{_DOCS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_DOCS}/swagger-ui.css",
        swagger_favicon_url=f"{_DOCS}/favicon.png",
        swagger_ui_parameters={"tryItOutEnabled": True},  # by default a browser would also keep the token
    )


def _describe(schema: dict[str, Any], config: ServeConfig) -> None:
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for of_fastapi in ("HTTPValidationError", "ValidationError"):  # whose errors are lists
        schemas.pop(of_fastapi, None)
    schemas["Problem"] = _PROBLEM
    codes = {
        ("post", "/adapters"): (400, 408, 413, 422, 429, 503, 507, *([502] if config.vllm else [])),
        ("get", "/adapters/{adapter_id}"): (404, 422, 503, 507),  # the last where there is no room to pack it
    }
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            expected = codes.get((method, path), ())
            operation["responses"].pop("422", None)
            if config.token is not None and not is_open_to_all(path):
                expected = (401, *expected)
                operation["security"] = [{"token": []}]
            for code in expected:
                operation["responses"][str(code)] = {
                    "description": _PROBLEMS[code],
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
    if config.token is not None:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
