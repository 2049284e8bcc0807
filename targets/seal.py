# SPDX-License-Identifier: Apache-2.0
"""Seals the model inside a linked image: length and CRC-32 of its section, which the firmware checks at boot."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from train.say import UserError, need

SECTION = ".ecg_model"
MAGIC = 0x31474345
HEAD = struct.Struct("<4I")         # magic, version, length, crc: the beginning of an ecg_model


def seal(elf: Path) -> int:
    """Write length and CRC into the image. Returns the bytes of the section.

    The CRC is taken with its own field 0. UserError when the section does not begin with a model.
    """
    need("elftools", "mcu")
    from elftools.elf.elffile import ELFFile
    with open(elf, "rb") as file:
        section = ELFFile(file).get_section_by_name(SECTION)
        if section is None or section["sh_size"] < HEAD.size:
            raise UserError(f"{elf} holds no model", f"a section {SECTION}", "link it with firmware/boot/link.ld")
        offset, data = section["sh_offset"], bytearray(section.data())
    magic, version, _, _ = HEAD.unpack_from(data)
    if magic != MAGIC:
        raise UserError(f"{elf}: the section {SECTION} begins with {magic:#x}", f"a model, {MAGIC:#x}")
    HEAD.pack_into(data, 0, magic, version, len(data), 0)
    HEAD.pack_into(data, 0, magic, version, len(data), zlib.crc32(data))
    with open(elf, "r+b") as file:
        file.seek(offset)
        file.write(data)
    return len(data)
