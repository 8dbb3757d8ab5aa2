"""The HTTP interface of a served run."""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from s3prl_mtl.errors import UserError
from s3prl_mtl.serving.limits import TOO_LARGE, LimitedPost, Limits, refusal
from s3prl_mtl.serving.model import ServedModel

PAGE_HEADERS = {
    # The pages use nothing but this server; recordings are `blob:` addresses.
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline' "
    "blob:; style-src 'unsafe-inline'; media-src blob:; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
ERROR = {
    "application/json": {
        "schema": {
            "type": "object",
            "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
        }
    }
}
FIELDS = {
    "file": "`file` must be an audio file with a name: curl -F file=@speech.wav.",
    "tasks": "`tasks` must be names separated by commas.",
}
"""The fields of the form, and what is wrong with those that are not valid."""
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Audio that cannot be used, or an unknown task.", "content": ERROR},
    413: {"description": "A request or audio above the limits.", "content": ERROR},
    422: {"description": "A form with other, missing or repeated fields.", "content": ERROR},
    503: {"description": "Too many requests wait.", "content": ERROR},
    504: {"description": "No answer in time.", "content": ERROR},
}


def make_app(model: ServedModel, name: str, limits: Limits) -> LimitedPost:
    """The application that serves a run.

    Args:
        model: the run.
        name: of the run, as shown.
        limits: of requests.
    """
    app = FastAPI(
        title=f"s3prl-mtl: {name}",
        version=version("s3prl-mtl"),
        description="Predictions of a speech encoder with several heads.",
        # FastAPI's own pages load scripts from the network.
        docs_url=None,
        redoc_url=None,
    )
    limited = LimitedPost(app, limits)

    @app.post("/predict", responses=REFUSALS)
    async def predict(
        request: Request,
        file: Annotated[UploadFile, File(description="wav, flac, ogg, opus, mp3, ...")],
        tasks: Annotated[
            str, Form(description="Names separated by commas; empty for all.", examples=["asr,er"])
        ] = "",
    ) -> dict[str, Any]:
        """Predict for an audio file: its name, and the answer of each task."""
        _require_known_fields(request, await request.form())
        wanted = [task.strip() for task in tasks.split(",") if task.strip()]
        answers = await model.predict(file.file, file.filename or "the file", wanted)
        return {"file": file.filename, **answers}

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The served run, and the number of requests that are open."""
        return {
            "status": "ok",
            "run": name,
            "step": model.run.step,
            "tasks": model.tasks,
            "open_requests": limited.open,
        }

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return _page("page.html")

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return _page("docs.html")

    @app.exception_handler(UserError)
    async def mistake(request: Request, error: UserError) -> Response:
        return refusal(413 if error.code == "audio-too-long" else 400, str(error), error.code)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        code = TOO_LARGE if error.status_code == 413 else "invalid-request"
        return refusal(error.status_code, str(error.detail), code)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        fields = dict.fromkeys(str(fault["loc"][-1]) for fault in error.errors())
        faults = [FIELDS.get(field, f"{field} is not valid.") for field in fields]
        return refusal(422, " ".join(faults), "invalid-request")

    return limited


def _require_known_fields(request: Request, form: FormData) -> None:
    """Refuse a request of which a part would be ignored.

    Raises:
        HTTPException: a field is unknown or repeated, or there are parameters in the address.
    """
    names = [name for name, _ in form.multi_items()]
    ignored = [name for name in dict.fromkeys(names) if name not in FIELDS or names.count(name) > 1]
    if ignored or request.query_params:
        found = ", ".join([*ignored, *(f"?{name}" for name in request.query_params)])
        raise HTTPException(
            422, f"The form has one `file` and at most one `tasks`, and nothing else: {found}."
        )


def _page(name: str) -> HTMLResponse:
    text = (files(__package__) / name).read_text(encoding="utf-8")
    return HTMLResponse(text, headers=PAGE_HEADERS)
