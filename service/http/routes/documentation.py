"""The OpenAPI document, its Swagger UI page and the documentation site, served without the
internet."""

from functools import cache
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse

import service
from service.http.problems import ProblemError

router = APIRouter(include_in_schema=False)
FOLDER = FilePath(service.__file__).parent / "documentation"
SITE = FilePath(service.__file__).parent / "site"
"""Where `make docs` builds the documentation site; it need not be there."""
_INDEX = "index.html"
_TYPES = {".css": "text/css", ".js": "text/javascript"}
_FILES = {path.name: path for path in FOLDER.iterdir() if path.suffix in _TYPES}
# data:, because Swagger UI has its images in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The theme's pages have small scripts and styles of their own in them; all are ours and static.
_SITE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


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


@router.get("/guide")
async def guide() -> RedirectResponse:
    """Redirect to the documentation site's first page."""
    return RedirectResponse("guide/")


@router.get("/guide/{path:path}")
async def guide_file(path: str) -> FileResponse:
    """Return a file of the documentation site."""
    found = _site_files(SITE).get(path or _INDEX)
    if found is None:
        expected = "a page of the documentation" if _site_files(SITE) else "`make docs` to build it"
        raise ProblemError(404, "not_found", f"got {path!a}, expected {expected}")
    headers = {"Content-Security-Policy": _SITE_POLICY, "Cache-Control": "max-age=3600"}
    return FileResponse(found, headers=headers)


def has_site() -> bool:
    """Return True if `make docs` has built the documentation site."""
    return (SITE / _INDEX).is_file()


@cache
def _site_files(folder: FilePath) -> dict[str, FilePath]:
    """The files below a folder by their relative paths; only these are ever opened."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}
