"""The OpenAPI document and its Swagger UI page, served without the internet."""

from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse

import service
from service.http.problems import ProblemError

router = APIRouter(include_in_schema=False)
FOLDER = FilePath(service.__file__).parent / "documentation"
_TYPES = {".css": "text/css", ".js": "text/javascript"}
_FILES = {path.name: path for path in FOLDER.iterdir() if path.suffix in _TYPES}
# data:, because Swagger UI has its images in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/")
async def root() -> RedirectResponse:
    """Redirect to the interactive documentation."""
    return RedirectResponse("docs")  # relative, because a proxy may add a prefix to the path


@router.get("/openapi.json")
async def openapi(request: Request) -> JSONResponse:
    """Return the OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs() -> FileResponse:
    """Return the interactive documentation, Swagger UI."""
    headers = {"Content-Security-Policy": _POLICY}
    return FileResponse(FOLDER / "docs.html", headers=headers, media_type="text/html")


@router.get("/docs/{name}")
async def docs_file(name: Annotated[str, Path(max_length=64)]) -> FileResponse:
    """Return a script or style sheet of the documentation page."""
    if name not in _FILES:
        expected = f"one of {', '.join(sorted(_FILES))}"
        raise ProblemError(404, "not_found", f"got {name!a}, expected {expected}")
    path, headers = _FILES[name], {"Cache-Control": "max-age=3600"}
    return FileResponse(path, headers=headers, media_type=_TYPES[path.suffix])
