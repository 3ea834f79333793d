"""The server: vectors over HTTP in the forms that clients know, and search over an index; `mmembed serve` starts it."""

from importlib.util import find_spec

from ..errors import MissingExtra

for package in ("starlette", "uvicorn", "pydantic", "prometheus_client", "orjson"):
    if find_spec(package) is None:
        raise MissingExtra(package, "serve")
