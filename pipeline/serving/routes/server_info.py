"""Facts of the server, at vLLM's and NIM's paths: version, metadata, license and manifest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI, HTTPException, Response

import pipeline
from pipeline.core.paths import ROOT
from pipeline.serving.openai.responses import Json
from pipeline.serving.versions import ServedVersion

API_VERSION = "2.0.0"  # of NIM, whose paths these are
LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENSE-MODEL")


def add_server_info(
    app: FastAPI,
    *,
    model: str,
    folder: Path | None,
    runtime: str,
    profile: str | None,
    version: ServedVersion | None,
) -> None:
    """Add the routes.

    Args:
        folder: the model's, whose license is shown; else that of this software.
        profile: the name of the engine's profile. version: the registered one that is served.
    """
    registered = version.fields if version else {}
    license_of = _license(folder)
    facts = {
        "version": pipeline.__version__,
        "repository_override": "",
        "assetInfo": [],
        "modelInfo": [{"shortName": model, "modelUrl": "", **registered}],
        "selectedModelProfileId": profile or runtime,
    }

    @app.get("/version")
    async def software_version() -> dict[str, str]:
        return {"version": pipeline.__version__}

    @app.get("/v1/version")
    async def nim_version() -> dict[str, str]:
        model_version = {"model_version": str(version.number)} if version else {}
        return {"release": pipeline.__version__, "api": API_VERSION, **model_version}

    @app.get("/v1/metadata")
    async def metadata() -> Response:
        return Json({**facts, "licenseInfo": license_of})

    @app.get("/v1/license")
    async def license_info() -> Response:
        if license_of is None:
            raise HTTPException(404, "there is no license file beside the model")
        return Json(license_of)

    @app.get("/v1/manifest")
    async def manifest() -> Response:
        tree = {"model": model, "profiles": [{"id": profile or runtime, "engine": runtime}]}
        return Json({"manifest_file": yaml.safe_dump(tree), "repository": ""})


def _license(folder: Path | None) -> Mapping[str, Any] | None:
    """The license of the model, else of this software; None if there is neither."""
    for place in filter(None, (folder, ROOT)):
        for name in LICENSE_NAMES:
            try:
                text = (place / name).read_text(errors="replace")
            except OSError:
                continue
            return {
                "name": name,
                "path": name,
                "sha": hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(),
                "size": len(text),
                "url": "",
                "type": "file",
                "content": text,
            }
    return None
