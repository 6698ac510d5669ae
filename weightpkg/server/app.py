"""The application: OpenAI's routes over the models that are installed here."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Coroutine
from contextlib import ExitStack
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request  # noqa: TC002  routes' annotations are read at run time
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from weightpkg.errors import TemplateError, WeightpkgError
from weightpkg.server.answers import Chat, Generation, Text
from weightpkg.server.counters import CONTENT_TYPE
from weightpkg.server.library import Entry
from weightpkg.server.served import (
    ConstraintError,
    EmbeddingModel,
    PromptError,
    PromptTooLongError,
    TextModel,
)
from weightpkg.server.service import Service
from weightpkg.server.wire import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    RequestError,
    error_body,
)

T = TypeVar("T")

_INVALID = "invalid_request_error"
_NO_STORE = {"Cache-Control": "no-store"}
_PAGE = files(__package__).joinpath("chat.html").read_text(encoding="utf-8")


def create_app(service: Service) -> FastAPI:
    """Return the application; what may reach it is `guard`'s affair."""
    app = FastAPI(title="weightpkg", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    _add_errors(app)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entries = await asyncio.to_thread(service.library.entries)
        return {"object": "list", "data": [_model(entry) for entry in entries.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        entry = await asyncio.to_thread(service.library.find, name)
        if entry is None:
            raise RequestError(
                404, f"the model `{name}` is not served here", code="model_not_found"
            )
        return _model(entry)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Any:
        return await _serve(request, Chat(service, body), is_streamed=body.stream)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Any:
        return await _serve(request, Text(service, body), is_streamed=body.stream)

    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingRequest) -> dict[str, Any]:
        return await _embed(service, body)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        loaded = service.pool.loaded()
        gauges = {("weightpkg_loaded", name): 1.0 for name in loaded} | {
            ("weightpkg_waiting", name): float(each.engine.n_waiting)
            for name, each in loaded.items()
            if isinstance(each, TextModel)
        }
        return PlainTextResponse(service.counters.text(gauges), media_type=CONTENT_TYPE)

    @app.get("/")
    async def page() -> HTMLResponse:
        headers = {"Content-Security-Policy": _policy(_PAGE), "Referrer-Policy": "no-referrer"}
        return HTMLResponse(_PAGE, headers=headers)

    return app


def _policy(page: str) -> str:
    """Return what a page may do: its own script and style, and no other; asking this server.

    https://www.w3.org/TR/CSP3/#framework-directive-source-list `hash-source`
    """
    hashes = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    }
    return (
        f"default-src 'none'; connect-src 'self'; img-src data:; "
        f"script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def _serve(request: Request, generation: Generation, *, is_streamed: bool) -> Any:
    """Answer a request for text, whole or in parts."""
    stack = ExitStack()
    try:
        answers = await generation.begin(stack)
    except BaseException:
        stack.close()
        raise
    if is_streamed:
        parts = generation.stream(answers, stack)
        return StreamingResponse(parts, media_type="text/event-stream", headers=_NO_STORE)
    with stack:
        answer = await _while_there(request, generation.collect(answers))
    return JSONResponse(answer)


async def _while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what work makes; it is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "the client has gone")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _embed(service: Service, body: EmbeddingRequest) -> dict[str, Any]:
    entry = await asyncio.to_thread(service.entry, body.model, is_text=False)
    with ExitStack() as stack:
        model: EmbeddingModel = await service.open(stack, entry)
        if body.dimensions not in {None, model.dimensions}:
            reason = f"`{entry.name}` makes vectors of {model.dimensions} numbers"
            raise RequestError(400, reason, param="dimensions")
        vectors, n_tokens = await service.in_turn(entry.name, model.embed, body.texts)
    rows = [
        {"object": "embedding", "index": i, "embedding": _vector(vector, body.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    service.counters.add("weightpkg_prompt_tokens_total", n_tokens, model=entry.name)
    told = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": rows, "model": entry.name, "usage": told}


def _vector(vector: Any, form: str) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


def _model(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created_s,
        "owned_by": "weightpkg",
        "task": "text-generation" if entry.is_text else "feature-extraction",
    }


def _add_errors(app: FastAPI) -> None:
    """Have every error answered in OpenAI's form; none says more than it must."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        reason = first["msg"].removeprefix("Value error, ")
        body = error_body(f"{place or 'body'}: {reason}", kind=_INVALID, param=place or None)
        return JSONResponse(body, 400)

    @app.exception_handler(TemplateError)
    async def template(_: Request, error: TemplateError) -> JSONResponse:
        return JSONResponse(error_body(error.message, kind=_INVALID, param="messages"), 400)

    @app.exception_handler(ConstraintError)
    async def form(_: Request, error: ConstraintError) -> JSONResponse:
        body = error_body(error.message, kind=_INVALID, param="response_format")
        return JSONResponse(body, 400)

    @app.exception_handler(PromptError)
    async def prompt(request: Request, error: PromptError) -> JSONResponse:
        code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else None
        param = "messages" if request.url.path.endswith("/chat/completions") else "prompt"
        body = error_body(error.message, kind=_INVALID, code=code, param=param)
        return JSONResponse(body, 400)

    @app.exception_handler(WeightpkgError)
    async def failed(_: Request, error: WeightpkgError) -> JSONResponse:
        return JSONResponse(error_body(error.message, kind="server_error"), 500)

    @app.exception_handler(MemoryError)
    async def full(_: Request, __: MemoryError) -> JSONResponse:
        return JSONResponse(error_body("there is not enough memory", kind="server_error"), 503)

    @app.exception_handler(500)
    async def broken(_: Request, __: Exception) -> JSONResponse:
        # a mistake of ours, which is raised again, and so in the log
        reason = "the server made a mistake; its log says more"
        return JSONResponse(error_body(reason, kind="server_error"), 500)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        body = error_body(str(error.detail), kind=_INVALID)
        return JSONResponse(body, error.status_code, headers=error.headers)
