# SPDX-License-Identifier: Apache-2.0
"""A linked firmware image as the bytes that lie in flash: read from an ELF, written as HEX, BIN or UF2.

A piece is (address, bytes); pieces are in order of address and do not overlap.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from train.say import UserError

ERASED = 0xFF
UF2_MAGIC, UF2_SECOND, UF2_END = 0x0A324655, 0x9E5D5157, 0x0AB16F30
UF2_FAMILY_PRESENT, UF2_NOT_FLASH = 0x2000, 0x0001
UF2_PAYLOAD = 256                   # the boot ROM of RP2040 and RP2350 takes no other
GAP = 16 << 20                      # a flat file with a larger hole in it is a mistake in the linker script


@dataclass(frozen=True)
class Image:
    """The pieces that are written to the device, and where it starts (None where the format does not say)."""

    pieces: tuple[tuple[int, bytes], ...]
    entry: int | None = None

    @property
    def start(self) -> int:
        """The lowest address."""
        return self.pieces[0][0]

    @property
    def end(self) -> int:
        """Behind the highest address."""
        return max(address + len(data) for address, data in self.pieces)

    @property
    def size(self) -> int:
        """Bytes that are written."""
        return sum(len(data) for _, data in self.pieces)


def read_elf(path: str | Path) -> Image:
    """The loadable contents of a 32-bit little-endian ELF, at their load addresses (initial values of RAM included)."""
    data = Path(path).read_bytes()
    if data[:6] != b"\x7fELF\x01\x01":
        raise UserError(f"{path} is no firmware image", "a 32-bit little-endian ELF file",
                        "build it: python targets/deploy.py --run R --target mcu --board B")
    try:
        entry, table = struct.unpack_from("<2I", data, 24)
        size, count = struct.unpack_from("<2H", data, 42)
        headers = [struct.unpack_from("<6I", data, table + i * size) for i in range(count)]
    except struct.error as error:
        raise UserError(f"{path} is cut off", "a complete ELF file", "build it again") from error
    pieces = []
    for kind, offset, _virtual, load, length, _memory in headers:
        if kind == 1 and length:
            if offset + length > len(data):
                raise UserError(f"{path} is cut off", "a complete ELF file", "build it again")
            pieces.append((load, data[offset:offset + length]))
    return Image(_ordered(pieces, path), entry)


def _ordered(pieces: list[tuple[int, bytes]], path) -> tuple[tuple[int, bytes], ...]:
    """Pieces in order; neighbours joined. UserError when nothing is there or two claim the same byte."""
    joined: list[tuple[int, bytes]] = []
    for address, data in sorted(piece for piece in pieces if piece[1]):
        if joined and address < joined[-1][0] + len(joined[-1][1]):
            raise UserError(f"{path}: two sections claim address {address:#x}", "sections that do not overlap",
                            "check the linker script")
        if joined and address == joined[-1][0] + len(joined[-1][1]):
            joined[-1] = (joined[-1][0], joined[-1][1] + data)
        else:
            joined.append((address, data))
    if not joined:
        raise UserError(f"{path} holds nothing to write", "at least one loadable section", "build it again")
    return tuple(joined)


def fits(image: Image, origin: int, size: int, path: str | Path = "the image") -> None:
    """UserError unless every byte lies in the flash of the board."""
    if image.start < origin or image.end > origin + size:
        raise UserError(f"{path} covers {image.start:#x}..{image.end:#x}",
                        f"addresses in this board's flash, {origin:#x}..{origin + size:#x}",
                        "the image is of another board; build it with --board for this one")


def flat(image: Image) -> bytes:
    """One run of bytes from `start` on, holes filled as erased flash."""
    if image.end - image.start > image.size + GAP:
        raise UserError(f"the image is spread over {(image.end - image.start) >> 20} MB", "one region of flash",
                        "write the ELF or HEX file instead")
    out = bytearray([ERASED]) * (image.end - image.start)
    for address, data in image.pieces:
        out[address - image.start:address - image.start + len(data)] = data
    return bytes(out)


def write_bin(image: Image, path: str | Path) -> Path:
    """A file of bare bytes; the address is not in it."""
    Path(path).write_bytes(flat(image))
    return Path(path)


def write_hex(image: Image, path: str | Path) -> Path:
    """Intel HEX: 16 bytes a record, an upper-address record wherever the upper half of the address changes."""
    lines, upper = [], None
    for address, data in image.pieces:
        at = 0
        while at < len(data):
            here = address + at
            if here >> 16 != upper:
                upper = here >> 16
                lines.append(_hex_record(0, 4, struct.pack(">H", upper)))
            step = min(16, 0x10000 - (here & 0xFFFF))       # a record stays within its 64 kB
            lines.append(_hex_record(here & 0xFFFF, 0, data[at:at + step]))
            at += step
    if image.entry is not None:
        lines.append(_hex_record(0, 5, struct.pack(">I", image.entry)))
    lines.append(_hex_record(0, 1, b""))
    Path(path).write_text("\n".join(lines) + "\n")
    return Path(path)


def _hex_record(address: int, kind: int, data: bytes) -> str:
    body = struct.pack(">BHB", len(data), address, kind) + data
    return ":" + (body + bytes([-sum(body) & 0xFF])).hex().upper()


def write_uf2(image: Image, path: str | Path, family: int) -> Path:
    """UF2: 512-byte blocks of 256 bytes of flash each, aligned, for chips of `family`; holes in a block are erased."""
    pages: dict[int, bytearray] = {}
    for address, data in image.pieces:
        for at in range(address & -UF2_PAYLOAD, address + len(data), UF2_PAYLOAD):
            page = pages.setdefault(at, bytearray([ERASED]) * UF2_PAYLOAD)
            first, last = max(at, address), min(at + UF2_PAYLOAD, address + len(data))
            page[first - at:last - at] = data[first - address:last - address]
    blocks = []
    for number, at in enumerate(sorted(pages)):
        head = struct.pack("<8I", UF2_MAGIC, UF2_SECOND, UF2_FAMILY_PRESENT, at, UF2_PAYLOAD, number, len(pages),
                           family)
        blocks.append(head + bytes(pages[at]).ljust(476, b"\0") + struct.pack("<I", UF2_END))
    Path(path).write_bytes(b"".join(blocks))
    return Path(path)


def read_uf2(data: bytes) -> tuple[int | None, Image]:
    """(family, image) of a UF2 file; UserError when a block is damaged, missing or of another family than the rest."""
    def damaged(block: int, why: str) -> UserError:
        return UserError(f"UF2 block {block} {why}", "a complete UF2 file", "convert the ELF again")

    if not data or len(data) % 512:
        raise UserError(f"{len(data)} bytes are no UF2 file", "512-byte blocks", "convert the ELF again")
    families, pieces, seen, total = set(), [], set(), len(data) // 512
    for block in range(total):
        raw = data[block * 512:block * 512 + 512]
        magic, second, flags, address, size, number, count, family = struct.unpack_from("<8I", raw)
        if (magic, second, struct.unpack_from("<I", raw, 508)[0]) != (UF2_MAGIC, UF2_SECOND, UF2_END):
            raise damaged(block, "has a wrong magic number")
        if size > 476 or count != total or number >= count or number in seen:
            raise damaged(block, f"says {number} of {count}, {size} bytes")
        seen.add(number)
        if not flags & UF2_NOT_FLASH:
            pieces.append((address, raw[32:32 + size]))
            families.add(family if flags & UF2_FAMILY_PRESENT else None)
    if len(families) != 1:
        raise UserError(f"the UF2 file is for {len(families)} families of chips", "one", "convert the ELF again")
    return families.pop(), Image(_ordered(pieces, "the UF2 file"))
