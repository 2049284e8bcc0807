# SPDX-License-Identifier: Apache-2.0
"""Seals the models inside a linked image: lengths and CRC-32s of their section, which the firmware checks at boot.

The heads of all models lie in front of the section. Each one's seal covers the bytes from it to the section's end.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from train.say import UserError, need

SECTION = ".ecg_model"
MAGIC = 0x31474345
HEAD = struct.Struct("<5I")         # magic, version, length, crc, ~length: the beginning of an ecg_model


def seal(elf: Path) -> int:
    """Write lengths and CRCs into the image. Returns the bytes of the section.

    A CRC is taken with its own field 0. UserError when the section does not begin with a model.
    """
    need("elftools", "mcu")
    from elftools.elf.elffile import ELFFile
    with open(elf, "rb") as file:
        image = ELFFile(file)
        section = image.get_section_by_name(SECTION)
        if section is None or section["sh_size"] < HEAD.size:
            raise UserError(f"{elf} holds no model", f"a section {SECTION}", "link it with firmware/boot/link.ld")
        offset, data = section["sh_offset"], bytearray(section.data())
        places = {s["st_value"] - section["sh_addr"] for s in image.get_section_by_name(".symtab").iter_symbols()
                  if s["st_info"]["type"] == "STT_OBJECT"}
    magic = HEAD.unpack_from(data)[0]
    if magic != MAGIC:
        raise UserError(f"{elf}: the section {SECTION} begins with {magic:#x}", f"a model, {MAGIC:#x}")
    heads = {0} | {at for at in places if 0 <= at <= len(data) - HEAD.size and HEAD.unpack_from(data, at)[0] == MAGIC}
    for at in sorted(heads, reverse=True):          # what a seal covers holds the seals of the heads behind it
        version, length = HEAD.unpack_from(data, at)[1], len(data) - at
        HEAD.pack_into(data, at, MAGIC, version, length, 0, length ^ 0xffffffff)
        HEAD.pack_into(data, at, MAGIC, version, length, zlib.crc32(data[at:]), length ^ 0xffffffff)
    with open(elf, "r+b") as file:
        file.seek(offset)
        file.write(data)
    return len(data)
