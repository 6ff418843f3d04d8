"""The HTTP side of a served model: what is asked, what is refused and why, and what is answered.

    POST /predict        one image as the body (image/*), or several as multipart/form-data -> {"records":
        [...]}
    GET  /               a description of the model
    GET  /health         whether it is serving; the only path that needs no token
    GET  /openapi.json   the types of all this

A refused request gets its reason, in one line, under `error`: 400 no image or none that can be used, 401
missing or wrong token, 408 too slow, 413 too many bytes, pixels or images, 415 neither an image nor
multipart/form-data, 503 too many requests in progress. If only some of a request's images cannot be used,
their records give the reason, as `predict` writes it; the others are answered.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cluster.errors import printable
from cluster.serving.replicas import Answer, Asked, Unanswered
from finetune.predicting.sources import Item
from finetune.serving.answers import Failure, Health, ModelDescription, answer_type
from finetune.serving.multipart import files_of
from finetune.serving.settings import ServeSettings

MEGA = 1_000_000
LARGEST_BATCH = "x-batch-size"  # header: images in the largest batch that a request's images were in
BODIES = {
    "image/*": {"schema": {"type": "string", "format": "binary"}},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        }
    },
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Failure, "description": HTTPStatus(code).phrase}
    for code in (400, 401, 408, 413, 415, 500, 503, 504)
}


class Refused(Exception):
    """A request that is not answered: the status, and why, in a line."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Room:
    """Requests in progress, and the bytes that they may take:
    any beyond that are refused, so that memory stays bounded.
    """

    def __init__(self, max_requests: int, max_bytes: float) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._requests, self._taken = 0, 0.0

    @contextmanager
    def taken(self, size: float) -> Iterator[None]:
        """Takes what a request needs. Raises Refused if that is not available."""
        if self._requests >= self._max_requests or (self._requests and self._taken + size > self._max_bytes):
            raise Refused(503, f"{self._requests} requests are already in progress; try again in a second")
        self._requests, self._taken = self._requests + 1, self._taken + size
        try:
            yield
        finally:
            self._requests, self._taken = self._requests - 1, self._taken - size


def new_app(asked: Asked, config: dict[str, Any], names: Sequence[str], result_type: type,
            settings: ServeSettings, *, channels: int = 3, token: str | None = None) -> FastAPI:  # fmt: skip
    """The application.

    Args:
        asked: what makes records of images.
        config, names, result_type, channels: of the model.
        token: that clients must send; None: none.
    """
    guarded = [] if token is None else [Depends(authorised_by(token))]
    app = FastAPI(title="fovea", description=__doc__, docs_url=None, redoc_url=None, openapi_url=None)
    room = Room(settings.max_requests, settings.max_waiting_megabytes * MEGA)
    described = ModelDescription(
        task=config["task"],
        names=list(names),
        image_size=config["image_size"],
        channels=channels,
        max_megabytes=settings.max_megabytes,
        max_megapixels=settings.max_megapixels,
        max_images=settings.max_images,
    )

    @app.get("/", dependencies=guarded, responses={401: REFUSALS[401]})
    async def model() -> ModelDescription:
        """What the model is."""
        return described

    @app.get("/openapi.json", dependencies=guarded, include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/health", responses={200: {"model": Health}, 503: {"model": Health}})
    async def health() -> JSONResponse:
        """Whether requests are answered."""
        ready = await asked.num_ready()
        found = Health(status="ok" if ready else "no replica is ready", replicas=ready)
        return JSONResponse(found.model_dump(), 200 if ready else 503)

    @app.post(
        "/predict",
        dependencies=guarded,
        responses={200: {"model": answer_type(result_type)}, **REFUSALS},
        openapi_extra={"requestBody": {"required": True, "content": BODIES}},
    )
    async def predict(request: Request) -> Response:
        """A record for each image."""
        return await answer(request, asked, room, settings)

    for kind in (Refused, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, failure)
    return app


def authorised_by(token: str) -> Callable[..., Awaitable[None]]:
    """What refuses requests that do not send the token."""
    bearer = HTTPBearer(
        auto_error=False, description="the token that the server was given, or printed when it started"
    )

    async def authorised(sent: HTTPAuthorizationCredentials | None = Depends(bearer)) -> None:  # noqa: B008
        if sent is None:
            raise Refused(401, "this server asks for a token: send Authorization: Bearer TOKEN")
        if not hmac.compare_digest(sent.credentials.encode(), token.encode()):
            raise Refused(401, "the token is wrong")

    return authorised


async def failure(request: Request, error: Exception) -> JSONResponse:
    """Why a request is not answered, in a line."""
    if isinstance(error, Refused):
        more = {401: {"www-authenticate": "Bearer"}, 408: {"connection": "close"}, 503: {"retry-after": "1"}}
        return JSONResponse({"error": printable(str(error))}, error.status, more.get(error.status))
    if isinstance(error, HTTPException):
        why = (
            f"{error.detail}: {request.method} {request.url.path}; there are POST /predict, GET /, "
            "/health, /openapi.json"
        )
        return JSONResponse({"error": printable(why)}, error.status_code, error.headers)
    if isinstance(error, ClientDisconnect):
        return JSONResponse({"error": "the request is cut off"}, 400)
    return JSONResponse({"error": "the server failed; its own output says why"}, 500)


async def answer(request: Request, asked: Asked, room: Room, settings: ServeSettings) -> Response:
    """The records of a request's images. Raises Refused."""
    limit = settings.max_megabytes * MEGA
    told = content_length(request)
    if told is not None and told > limit:
        raise Refused(413, f"{told / MEGA:.1f} MB; a request has at most {settings.max_megabytes:g} MB")
    with room.taken(limit if told is None else told):
        try:
            async with asyncio.timeout(settings.timeout_seconds):
                body = await read_body(request, limit, settings.max_megabytes)
        except TimeoutError:
            raise Refused(408, f"the request did not arrive within {settings.timeout_seconds:g} s") from None
        items = images_of(request.headers.get("content-type", ""), body, settings.max_images)
        del body
        try:
            async with asyncio.timeout(settings.timeout_seconds):
                answers = await asked.ask(items)
        except TimeoutError:
            raise Refused(504, f"no answer within {settings.timeout_seconds:g} s") from None
        except Unanswered as error:
            raise Refused(503, str(error)) from None
    return answer_of(answers, settings.max_megapixels)


def content_length(request: Request) -> int | None:
    """Bytes of a body by its header; None where it does not say."""
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not text.isdecimal():
        raise Refused(400, f"Content-Length {text!r} is no number")
    return int(text)


async def read_body(request: Request, limit: float, megabytes: float) -> bytes:
    """The body, of which no more than a piece beyond the limit is ever held. Raises Refused."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise Refused(413, f"more than {megabytes:g} MB, which is all that a request may have")
    return bytes(body)


def images_of(content_type: str, body: bytes, max_images: int) -> list[Item]:
    """The images of a request. Raises Refused."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        try:
            files = files_of(content_type, body, max_files=max_images)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        if len(files) > max_images:
            raise Refused(413, f"more than {max_images} images; send them in several requests")
        items = [Item(file.name, index, None, file.data) for index, file in enumerate(files)]
    elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
        items = [Item("body", 0, None, body)] if body else []
    else:
        raise Refused(415, f"Content-Type {kind}; send an image (image/*) or several as multipart/form-data")
    if not items:
        raise Refused(400, "no image; send one as the body, or several as multipart/form-data")
    return items


def answer_of(answers: Sequence[Answer], megapixels: float) -> Response:
    """The records, unless there is none but of images that cannot be used. Raises Refused."""
    records = [answer.value for answer in answers]
    errors = [record["error"] for record in records]
    if all(errors):
        large = all(error.startswith("too large") for error in errors)
        told = "; ".join(f"{record['source'] or record['index']}: {record['error']}" for record in records)
        bound = f" (at most {megapixels:g} megapixels)" if large else ""
        none = f"none of {len(records)} images can be used: " if len(records) > 1 else ""
        raise Refused(413 if large else 400, f"{none}{told}{bound}")
    batch = max(answer.batch_size for answer in answers)
    return Response(
        json.dumps({"records": records}, ensure_ascii=False),
        media_type="application/json",
        headers={LARGEST_BATCH: str(batch)},
    )
