"""What the bytes of an image file tell before anything is decoded:
its format, how EXIF says it lies, chunks of a PNG.
"""

from __future__ import annotations

import struct

from pretrain.data.images.planes import MAGIC, PlanesImageFile

ORIENTATION_TAG = 0x0112
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
LARGE_PNG_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # of no use here, and refused by Pillow above a size


def image_format(data: bytes | memoryview) -> str | None:
    """The format that the first bytes (32 suffice) tell, one of `decode.OPENERS` or `decode.NOT_DECODED`,
    or None.
    """
    start = bytes(data[:32])
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(MAGIC):
        return PlanesImageFile.format
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start.startswith(b"BM"):
        return "BMP"
    if start[4:8] == b"ftyp":
        brands = start[8:12] + start[16:32]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "HEIC" if start[8:12] in HEIC_BRANDS else None
    if start.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JPEG 2000"
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3] in (b" ", b"\n", b"\t", b"\r"):
        return "PNM"
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "JPEG XL"
    return None


def exif_orientation(exif: bytes) -> int:
    """The orientation 1..8 in an EXIF block; 1 when it is missing or damaged,
    for the pixels may be good all the same.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (num_entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == ORIENTATION_TAG:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), tiff, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def late_png_exif(data: bytes) -> bytes | None:
    """The eXIf chunk that some tools write behind the pixels,
    where Pillow sees it only once all is decoded.
    """
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            return data[position + 8 : position + 8 + length]
        position += 12 + length
    return None


def without_large_texts(data: bytes) -> bytes:
    """A PNG without texts and colour profile, which the pixels do not
    need and Pillow refuses above a size.
    """
    parts, position = [data[:8]], 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind not in LARGE_PNG_CHUNKS:
            parts.append(data[position : position + 12 + length])
        position += 12 + length
    return b"".join(parts)
