"""The records of a pipeline's stages, as small JSON files in OUT/pipeline.
Each is written whole, before it counts.
"""

from __future__ import annotations

import secrets as randomness
from dataclasses import asdict

from cluster import storage
from cluster.errors import UserError
from cluster.jobs.pipeline.plan import Record, Status
from cluster.jobs.pipeline.settings import STATE_FOLDER

VERSION = 1
IDENTITY = ".identity.json"


class State:
    """The records of one pipeline, at any fsspec URL."""

    def __init__(self, out: str) -> None:
        self.url = storage.join(out, STATE_FOLDER)

    def token(self) -> str:
        """What tells the jobs of this pipeline from those of others,
        and of earlier ones in the same folder.
        """
        url = storage.join(self.url, IDENTITY)
        if not storage.exists(url):
            storage.write_json(url, {"version": VERSION, "token": randomness.token_hex(3)})
        return str(storage.read_json(url)["token"])

    def read(self, stage: str) -> Record | None:
        """What is noted of a stage. Raises UserError when it cannot be understood."""
        url = self._file(stage)
        if not storage.exists(url):
            return None
        found = storage.read_json(url)
        try:
            if found.pop("version") != VERSION:
                raise ValueError("another version")
            found["status"] = Status(found["status"])
            found["command"] = tuple(found["command"])
            return Record(**found)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{url} is not the state of a pipeline ({error}); remove it to run the stage again"
            ) from error

    def write(self, stage: str, record: Record) -> None:
        """Notes what a stage came to."""
        storage.write_json(self._file(stage), {"version": VERSION, **asdict(record)})

    def _file(self, stage: str) -> str:
        return storage.join(self.url, f"{stage}.json")
