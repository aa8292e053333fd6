"""The page for chemists at `/`, and its files. It asks for nothing from another host."""

import mimetypes
from importlib.metadata import version
from pathlib import Path as FilePath

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles

import service
from service.http.problems import ProblemError
from service.http.routes import documentation

router = APIRouter(include_in_schema=False)
FOLDER = FilePath(service.__file__).parent / "page"
_INDEX = "index.html"
_FILES = {
    path.relative_to(FOLDER).as_posix(): path
    for path in FOLDER.rglob("*")
    if path.suffix in (".html", ".js", ".css", ".svg")
}
_TYPES = {".js": "text/javascript"}
# blob:, because pictures are asked for with the API key and shown as images.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/")
async def root(request: Request) -> Response:
    """Show the page to a browser; to others say what this is and where to go on."""
    if "text/html" in request.headers.get("accept", ""):
        headers = {"Content-Security-Policy": _POLICY, "Vary": "Accept"}
        return _sent(request, _INDEX, headers)
    # Links are relative: a proxy may add a prefix.
    links = {
        "interactive documentation": "docs",
        "documentation": "guide/",
        "tasks": "tasks",
        "model": "model",
        "metrics": "metrics",
    }
    if not documentation.has_site():
        del links["documentation"]
    if "/metrics" not in request.app.openapi()["paths"]:
        del links["metrics"]  # on a port of its own
    about = {"name": request.app.title, "description": request.app.description}
    content = {**about, "version": version("g-merging"), "links": links}
    return JSONResponse(content, headers={"Vary": "Accept"})


@router.get("/page/{path:path}")
async def page_file(request: Request, path: str) -> Response:
    """Return a script, a style sheet or a picture of the page."""
    if path not in _FILES or path == _INDEX:
        raise ProblemError(404, "not_found", f"got {path[:100]!a}, expected a file of the page")
    return _sent(request, path, {})


def _sent(request: Request, path: str, headers: dict[str, str]) -> Response:
    """Return a file, or 304 where the browser has it. It asks every time: after an update of the
    service no old script meets a new one."""
    found = _FILES[path]
    kind = _TYPES.get(found.suffix) or mimetypes.guess_type(found.name)[0]
    response = FileResponse(
        found,
        headers={**headers, "Cache-Control": "no-cache"},
        media_type=kind,
        stat_result=found.stat(),
    )
    files = StaticFiles(directory=FOLDER)
    if files.is_not_modified(response.headers, request.headers):
        unchanged = NotModifiedResponse(response.headers)
        # A browser takes the headers of a 304 for what it has; without the policy of the page the
        # strictest one would be added, and a reloaded page could load nothing.
        unchanged.headers.update(headers)
        return unchanged
    return response
