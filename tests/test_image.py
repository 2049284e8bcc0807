# SPDX-License-Identifier: Apache-2.0
"""Firmware images: ELF to HEX, BIN and UF2 and back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets import image as images
from tests.loaders import write_elf
from train.say import UserError

RP2040 = 0xE48B_FF56


@pytest.fixture
def elf(tmp_path):
    """Code and initial values of RAM, which lie in flash behind the code; a section that only takes room in RAM."""
    return write_elf(tmp_path / "fw.elf", [(0x1000_0000, 0x1000_0000, bytes(range(256)) * 5 + b"xyz"),
                                           (0x2000_0000, 0x1000_0600, b"initial values"),
                                           (0x2000_1000, 0x2000_1000, b"")])


def test_an_elf_is_read_at_its_load_addresses(elf):
    image = images.read_elf(elf)
    assert [(a, len(d)) for a, d in image.pieces] == [(0x1000_0000, 1283), (0x1000_0600, 14)]
    assert (image.start, image.end, image.size, image.entry) == (0x1000_0000, 0x1000_060E, 1297, 0x1000_0101)


def test_bare_bytes_have_erased_flash_in_their_holes(elf, tmp_path):
    data = images.write_bin(images.read_elf(elf), tmp_path / "fw.bin").read_bytes()
    assert data[:256] == bytes(range(256)) and data[1283:1536] == b"\xff" * 253 and data[1536:] == b"initial values"


def test_another_program_reads_our_hex_as_the_same_bytes(tmp_path):
    intelhex = pytest.importorskip("intelhex", reason="intelhex is not installed: pip install intelhex")
    image = images.read_elf(write_elf(tmp_path / "fw.elf", [(0x0800_FFF5, 0x0800_FFF5, bytes(range(200))),
                                                            (0x0803_0000, 0x0803_0000, b"far away")]))
    read = intelhex.IntelHex(str(images.write_hex(image, tmp_path / "fw.hex")))
    assert read.segments() == [(0x0800_FFF5, 0x0801_00BD), (0x0803_0000, 0x0803_0008)]
    assert all(read.tobinstr(start=a, size=len(d)) == d for a, d in image.pieces)
    assert read.start_addr == {"EIP": image.entry}


def test_a_uf2_file_is_blocks_of_aligned_pages_for_one_family(elf, tmp_path):
    data = images.write_uf2(images.read_elf(elf), tmp_path / "fw.uf2", RP2040).read_bytes()
    heads = [struct.unpack_from("<8I", data, at) for at in range(0, len(data), 512)]
    assert [h[:2] for h in heads] == [(0x0A32_4655, 0x9E5D_5157)] * 7
    assert [h[3] for h in heads] == [0x1000_0000 + 256 * page for page in (0, 1, 2, 3, 4, 5, 6)]
    assert [h[4:] for h in heads] == [(256, n, 7, RP2040) for n in range(7)]
    assert {struct.unpack_from("<I", data, at + 508)[0] for at in range(0, len(data), 512)} == {0x0AB1_6F30}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255), st.binary(min_size=1, max_size=255)), min_size=1,
                max_size=8, unique_by=lambda p: p[0]))
def test_any_image_survives_uf2_padded_to_pages(tmp_path_factory, pieces):
    folder = tmp_path_factory.mktemp("uf2")
    placed = [(0x1000_0000 + 512 * page + at, at, data) for page, at, data in pieces]
    image = images.read_elf(write_elf(folder / "fw.elf", [(a, a, d) for a, _, d in placed]))
    family, back = images.read_uf2(images.write_uf2(image, folder / "fw.uf2", RP2040).read_bytes())
    assert family == RP2040
    flat = images.flat(back)
    for address, data in image.pieces:
        assert flat[address - back.start:address - back.start + len(data)] == data
    rest = len(flat) - flat.count(0xFF)
    assert rest == sum(len(d) - d.count(0xFF) for _, d in image.pieces)


def test_a_damaged_uf2_file_is_refused(elf, tmp_path):
    good = images.write_uf2(images.read_elf(elf), tmp_path / "fw.uf2", RP2040).read_bytes()
    for bad in (b"", good[:-1], good[512:], good[:512] * 7, b"\0" + good[1:], good[:-4] + b"\0" * 4,
                good[:28] + b"\1" + good[29:]):
        with pytest.raises(UserError):
            images.read_uf2(bad)


@pytest.mark.parametrize("pieces, words", [
    ([(0x0800_0000, 0x0800_0000, b"four"), (0x0800_0002, 0x0800_0002, b"four")], "two sections claim"),
    ([(0x2000_0000, 0x2000_0000, b"")], "nothing to write")])
def test_an_image_that_cannot_be_is_refused(tmp_path, pieces, words):
    with pytest.raises(UserError, match=words):
        images.read_elf(write_elf(tmp_path / "fw.elf", pieces))


def test_a_cut_or_foreign_file_is_refused(tmp_path, elf):
    whole = elf.read_bytes()
    for bad in (b"MZ", whole[:40], whole[:60], whole[:-20], b"\x7fELF\x02" + whole[5:]):
        (tmp_path / "bad.elf").write_bytes(bad)
        with pytest.raises(UserError):
            images.read_elf(tmp_path / "bad.elf")


def test_a_hole_larger_than_any_flash_is_not_filled(tmp_path):
    image = images.read_elf(write_elf(tmp_path / "fw.elf", [(0, 0, b"a"), (0x2000_0000, 0x2000_0000, b"b")]))
    with pytest.raises(UserError, match="512 MB"):
        images.write_bin(image, tmp_path / "fw.bin")
    assert images.write_hex(image, tmp_path / "fw.hex").stat().st_size < 200


def test_an_image_of_another_board_does_not_fit(elf):
    image = images.read_elf(elf)
    images.fits(image, 0x1000_0000, 0x60E)
    for origin, size in ((0x0800_0000, 1 << 20), (0x1000_0000, 0x60D), (0x1000_0001, 1 << 20)):
        with pytest.raises(UserError, match="covers 0x10000000"):
            images.fits(image, origin, size)
