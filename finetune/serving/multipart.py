"""The files of a multipart/form-data body (RFC 7578), which the caller has kept within its limits."""

from __future__ import annotations

from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import NamedTuple


class File(NamedTuple):
    """A part: the name of its file, or of its field where it has none, and what it holds."""

    name: str
    data: bytes


def files_of(content_type: str, body: bytes, *, max_files: int) -> list[File]:
    """The parts of a body, in order; one more than `max_files` where there are more, unread.

    Raises ValueError, with a reason in a line, for what is not multipart/form-data.
    """
    boundary = _header(content_type).get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise ValueError("multipart/form-data without a boundary of at most 70 characters")
    # a boundary stands at the start of a line, whose end belongs to it
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("ascii"), max_files + 2)
    if not parts:
        raise ValueError("the boundary of multipart/form-data does not occur in the body")
    files: list[File] = []
    for part in parts[: max_files + 1]:
        if part.startswith(b"--"):  # the last boundary
            return files
        head, blank, data = part.partition(b"\r\n\r\n")
        if not blank:
            raise ValueError("a part of multipart/form-data is cut off")
        files.append(File(_name(head), data))
    if len(files) <= max_files:
        raise ValueError("multipart/form-data is cut off: its last boundary is missing")
    return files


def _header(content_type: str) -> Message:
    message = Message()
    message["Content-Type"] = content_type
    return message


def _name(head: bytes) -> str:
    """Of the headers of a part."""
    for line in head.split(b"\r\n"):
        key, _, value = line.decode("utf-8", "replace").partition(":")
        if key.strip().lower() == "content-disposition":
            message = Message()
            message["Content-Disposition"] = value.strip()
            for parameter in ("filename", "name"):
                found = message.get_param(parameter, header="content-disposition")
                if found:
                    return collapse_rfc2231_value(found)
    return ""
