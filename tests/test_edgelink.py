# SPDX-License-Identifier: Apache-2.0
"""EdgeLink: C and Python write the same bytes, read each other, and never take a damaged frame for a sound one."""

import ctypes
import dataclasses
import subprocess
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets import edgelink, toolchain, twin
from targets.device import HEARTBEAT, Device
from targets.edgelink import Framer, Message

SOURCE = twin.C / "ecg_link.c"
IDENTITY = bytes(range(0, 64, 2))
ABOUT = edgelink.HelloRsp(1, 0, b"\0\1\2", 2, 1, 1, 0xCAFE, 7, b"nrf52840dk".ljust(16, b"\0"), 2000, 8, 1000.0, 520, 1,
                          64000, 32, 5000, (edgelink.Model(IDENTITY, 250, 250, 2500, 1, 4, 1, 3),))
# name: (message, C struct, what C needs for the rest of the payload); all frames of the protocol
FRAMES = {
    "hello request": (Message(edgelink.HelloReq(1, 1, 0x12345678), 0, 5), "hello_req", ""),
    "hello response": (Message(ABOUT, 1, 70000), "hello_rsp", "hello_model"),
    "start": (Message(edgelink.Start(3, 1, 5000, 0xB0070001, 17), 2, 1), "start", ""),
    "set": (Message(edgelink.Set(3, -1), 4, 9), "set", ""),
    "ack": (Message(edgelink.Ack(4, 5, 6), 65535, 0xFFFFFFFF), "ack", ""),
    "samples": (Message(edgelink.Samples.of(1000, np.array([[-1, 255], [0, -8388608], [8388607, 1]]), 3, 2), 9, 4000000,
                        1), "samples", "bytes"),
    "samples of two bytes": (Message(edgelink.Samples.of(0, np.array([[-32768], [32767]]), 2), 0, 0, 4), "samples",
                             "bytes"),
    "a long frame": (Message(edgelink.Samples.of(7, np.arange(-150, 150).reshape(50, 6), 4), 3, 8), "samples", "bytes"),
    "status": (Message(edgelink.Status(*range(1, 13), 998, 2), 3, 3), "status", ""),
    "result": (Message(edgelink.Result(5, 2250, 2, 81234, 2500, 1, 0, 2, 4, 12, np.array([-5, 17, -128, 127])), 6, 6),
               "result", "bytes"),
    "inject": (Message(edgelink.Inject.of(0, np.array([[-128], [127], [0]]), 1), 8, 8), "samples", "bytes"),
    "inject of a window": (Message(edgelink.InjectWindow(40, 3, 0, 0, 0, b"\1\0\xff"), 8, 8, 4), "samples", "bytes"),
    "error": (Message(edgelink.Error(300, 4, "model"), 8, 8), "error", "bytes"),
}
# as they must look for ever
GOLDEN = {
    "hello request":
        "00031001010205010103010101077856341215c600",
    "hello response":
        "000410020104701101020101080102020101feca01020701010b6e72663532383430646b010101010103d007"
        "01020801010101067a440802010102fa01022003881321020406080a0c0e10121416181a1c1e20222426282a"
        "2c2e30323436383a3c3efa02fa07c409010401030103b35b00",
    "start":
        "0004100302020101010603018813010407b011010103207600",
    "set":
        "0004100504020901010203010107ffffffff8cc800",
    "ack":
        "000a1006ffffffffffff0405050688c900",
    "samples":
        "00041110090103093d03e803010903020203ffffffff0101010101010680ffff7f010103753c00",
    "samples of two bytes":
        "0003141001010101010101010102020301020680ff7f224200",
    "status":
        "0004101103020301010201010102020101020301010204010102050101020601010207010102080101020901"
        "01020a0101020b0101020c010104e6030203de3100",
    "result":
        "0004102006020601010205010103ca08010202010104523d0104c409010402040c07fb11807f388300",
    "inject":
        "000410210802080101010101010203050101807f03dd0100",
    "inject of a window":
        "0004142108020801010228010102030101020104ff2e9700",
    "error":
        "0004107f0802080101042c0104086d6f64656ce35a00",
}


def c_value(value) -> str:
    if isinstance(value, bytes):
        return "{" + ", ".join(map(str, value)) + "}"
    return f"{value}f" if isinstance(value, float) else str(value)


def c_struct(kind: str, value) -> str:
    """An initialiser with the names that Python gives the fields."""
    fields = [f.name for f in dataclasses.fields(value) if f.name not in ("model", "data", "scores", "text")]
    return f"(ecg_link_{kind}) {{" + ", ".join(f".{n} = {c_value(getattr(value, n))}" for n in fields) + "}"


def c_frame(message: Message, kind: str, rest: str) -> str:
    """A block of C that prints the frame as hex."""
    payload, tail = message.payload, "NULL, 0"
    if rest == "hello_model":
        tail = f"&{c_struct(rest, payload.model[0])}, sizeof(ecg_link_{rest})"
    elif rest == "bytes":
        data = payload.pack()[8 if kind == "samples" else 24 if kind == "result" else 4:]
        tail = f"(uint8_t[]) {c_value(data)}, {len(data)}"
    return (f"    n = ecg_link_encode(&(ecg_link_head) {{{message.flags}, {payload.TYPE}, {message.seq}, "
            f"{message.time_us}u}}, &{c_struct(kind, payload)}, sizeof(ecg_link_{kind}), {tail}, out, sizeof out);\n"
            "    for (unsigned i = 0; i < n; i++) printf(\"%02x\", out[i]);\n    puts(\"\");\n")


def need_cc() -> None:
    if toolchain.missing("host"):
        pytest.skip(toolchain.missing("host"))


@pytest.fixture(scope="module")
def from_c(tmp_path_factory) -> dict[str, bytes]:
    """Every frame as C writes it, from the same field names."""
    need_cc()
    folder = tmp_path_factory.mktemp("link")
    blocks = "".join(c_frame(*FRAMES[name]) for name in FRAMES)
    (folder / "frames.c").write_text('#include "ecg_link.h"\n#include <stdio.h>\nint main(void)\n{\n'
                                     f"    uint8_t out[2048];\n    uint32_t n;\n{blocks}    return 0;\n}}\n")
    twin.cc(("-std=c99", "-Wall", "-Wextra", "-Werror"), folder / "frames.c", SOURCE, "-o", folder / "frames")
    text = subprocess.run([folder / "frames"], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(FRAMES, map(bytes.fromhex, text), strict=True))


class Rx(ctypes.Structure):
    """ecg_link_rx."""

    _fields_ = (("block", ctypes.c_void_p), ("room", ctypes.c_uint32), ("fill", ctypes.c_uint32),
                ("code", ctypes.c_uint8), ("left", ctypes.c_uint8), ("bad", ctypes.c_uint8),
                ("frames", ctypes.c_uint32), ("damaged", ctypes.c_uint32), ("foreign", ctypes.c_uint32))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """ecg_link.c under the sanitizers."""
    need_cc()
    path = tmp_path_factory.mktemp("link") / "link.so"
    twin.cc(("-std=c99", "-O1", "-g", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wconversion", "-Werror",
             "-fsanitize=undefined", "-fno-sanitize-recover=all"), SOURCE, "-o", path)
    return ctypes.CDLL(str(path))


def c_take(library, data: bytes, room: int = 2048) -> tuple[list[tuple], Rx]:
    """What the C receiver makes of bytes: [(flags, type, seq, time_us, payload)], and its counters."""
    block = (ctypes.c_uint8 * room)()
    rx, head = Rx(ctypes.addressof(block), room), (ctypes.c_uint8 * 8)()
    library.ecg_link_clear(ctypes.byref(rx))
    found = []
    for byte in data:
        n = library.ecg_link_take(ctypes.byref(rx), byte, head)
        if n >= 0:
            found.append((*edgelink.HEAD.unpack(bytes(head)), bytes(block)[8:8 + n]))
    return found, rx


def parts(message: Message) -> tuple:
    """A message as c_take gives it."""
    return message.flags, message.payload.TYPE, message.seq, message.time_us, message.payload.pack()


def test_both_sides_know_the_check_values_of_their_crcs(library):
    library.ecg_crc16.restype, library.ecg_crc32c.restype = ctypes.c_uint16, ctypes.c_uint32
    assert edgelink.crc16(b"123456789") == library.ecg_crc16(0xFFFF, b"123456789", 9) == 0x29B1
    assert edgelink.crc32c(b"123456789") == library.ecg_crc32c(0, b"123456789", 9) == 0xE3069283


@pytest.mark.parametrize("name", FRAMES)
def test_c_and_python_write_the_same_frame_from_the_same_names(from_c, name):
    assert from_c[name].hex() == edgelink.encode(FRAMES[name][0]).hex()


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_comes_back_as_it_was(library, name):
    message = FRAMES[name][0]
    data = edgelink.encode(message)
    assert c_take(library, data)[0] == [parts(message)]
    found = Framer().feed(data)
    assert found == [message] and [parts(m) for m in found] == [parts(message)]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_frame_looks_as_it_always_did(name):
    assert edgelink.encode(FRAMES[name][0]).hex() == GOLDEN[name]


def test_samples_keep_their_sign_in_every_width():
    for width in (1, 2, 3, 4):
        ends = np.array([[-(1 << (8 * width - 1)), (1 << (8 * width - 1)) - 1, -1, 0, 1]])
        kind = edgelink.Inject if width == 1 else edgelink.Samples
        data = kind.unpack(kind.of(0, ends, width).pack()).data
        assert np.array_equal(data, ends)
        with pytest.raises(ValueError, match="beyond"):
            kind.of(0, ends + 1, width)


def test_what_a_later_minor_version_adds_is_passed_over():
    more = Message(edgelink.Ack(1, 2, 3), 1)
    longer = dataclasses.make_dataclass("Longer", [("TYPE", int, edgelink.Ack.TYPE)], bases=(edgelink.Payload,),
                                        namespace={"pack": lambda self: more.payload.pack() + b"new"})()
    strange = dataclasses.make_dataclass("Strange", [("TYPE", int, 0x66)], bases=(edgelink.Payload,),
                                         namespace={"pack": lambda self: b"?"})()
    framer = Framer()
    found = framer.feed(edgelink.encode(Message(longer, 1)) + edgelink.encode(Message(strange, 2)))
    assert found == [more] and (framer.frames, framer.unknown, framer.damaged) == (2, 1, 0)


def test_another_version_is_counted_and_not_read(library):
    body = bytes([0x20, 6, 0, 0, 0, 0, 0, 0, 1, 0, 2, 3])
    data = b"\0" + edgelink.cobs.encode(body + edgelink.crc16(body).to_bytes(2, "little")) + b"\0"
    framer = Framer()
    assert framer.feed(data) == [] and framer.foreign == 1
    found, rx = c_take(library, data)
    assert found == [] and rx.foreign == 1


def test_text_and_noise_before_a_frame_cost_no_frame(library):
    message = FRAMES["start"][0]
    data = b"boot: hello\r\n" + edgelink.encode(message)
    framer = Framer()
    assert framer.feed(data) == [message] and framer.damaged == 1 and framer.noise == 13
    found, rx = c_take(library, data)
    assert found == [parts(message)] and rx.damaged == 1


def test_a_frame_that_is_lost_is_counted():
    framer = Framer()
    data = [edgelink.encode(Message(edgelink.Ack(0, 0, 0), seq)) for seq in (65534, 65535, 2, 3)]
    framer.feed(b"".join(data))
    assert (framer.frames, framer.lost) == (4, 2)


@pytest.mark.parametrize("length", [255, 256, 257, 258, 300])
def test_the_crc_changes_where_it_should(library, length):
    message = Message(edgelink.Log(1, "x" * (length - 9)), 1, 2)
    data = edgelink.encode(message)
    assert len(edgelink.cobs.decode(data.strip(b"\0"))) - length == (2 if length <= 256 else 4)
    assert Framer().feed(data) == [message] and c_take(library, data)[0] == [parts(message)]


def test_a_short_crc_on_a_long_frame_is_no_frame(library):
    body = bytes([0x10]) + bytes(256)
    data = b"\0" + edgelink.cobs.encode(body + edgelink.crc16(body).to_bytes(2, "little")) + b"\0"
    assert Framer().feed(data) == [] and c_take(library, data)[0] == []


def test_a_frame_that_is_too_long_for_the_receiver_is_dropped_and_the_next_one_is_not(library):
    long, brief = FRAMES["a long frame"][0], FRAMES["ack"][0]
    found, rx = c_take(library, edgelink.encode(long) + edgelink.encode(brief), room=64)
    assert found == [parts(brief)] and rx.damaged == 1


def test_endless_noise_takes_no_memory():
    framer = Framer()
    for _ in range(100):
        framer.feed(b"\xa5" * 4096)
    assert framer.noise == 100 * 4096 and len(framer._part) == 0
    assert framer.feed(edgelink.encode(FRAMES["ack"][0])) == [FRAMES["ack"][0]]


messages = st.one_of(
    st.builds(lambda n, text: Message(edgelink.Log(1, text), n, n), st.integers(0, 65535), st.text(max_size=300)),
    st.builds(lambda n, data: Message(edgelink.Samples.of(n, np.array(data).reshape(-1, 2), 3), n, n),
              st.integers(0, 65535), st.lists(st.integers(-1 << 23, (1 << 23) - 1), max_size=120).map(
                  lambda x: x[:len(x) // 2 * 2])))
faults = st.lists(st.tuples(st.sampled_from(["flip", "drop", "insert", "zero", "cut"]), st.floats(0, 1),
                            st.integers(1, 255)), max_size=6)


def damage(data: bytes, what: list[tuple[str, float, int]]) -> bytes:
    out = bytearray(data)
    for kind, where, value in what:
        at = int(where * (len(out) - 1)) if out else 0
        if kind == "insert" or not out:
            out.insert(at, value)
        elif kind == "flip":
            out[at] ^= value
        elif kind == "zero":
            out[at] = 0
        elif kind == "drop":
            del out[at]
        else:
            del out[at:at + value]
    return bytes(out)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(messages, min_size=1, max_size=8), faults, st.integers(1, 64))
def test_damage_loses_what_it_touched_and_invents_nothing(library, sent, what, portion):
    frames = [edgelink.encode(m) for m in sent]
    data = damage(b"".join(frames), what)
    framer, found = Framer(), []
    for at in range(0, len(data), portion):
        found += framer.feed(data[at:at + portion])
    honest = [parts(m) for m in sent]
    got = [parts(m) for m in found]
    assert all(g in honest for g in got)
    assert all(honest[i] in got for i, frame in enumerate(frames) if frame in data)
    assert c_take(library, data)[0] == got              # the two receivers never disagree


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=400), messages)
def test_after_any_noise_the_next_frame_is_received(library, noise, message):
    data = noise + edgelink.encode(message)
    assert parts(message) in [parts(m) for m in Framer().feed(data)]
    found, rx = c_take(library, data)
    assert found[-1] == parts(message) and rx.frames == len(found)


@pytest.mark.parametrize("kind", ["flip", "drop", "insert"])
@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
def test_a_line_that_spoils_bytes_delivers_no_wrong_frame(kind, rate):
    rng = np.random.default_rng([len(kind), int(1 / rate)])
    sent = [Message(edgelink.Samples.of(25 * i, rng.integers(-9000, 9000, (10, 3)), 3), i, i) for i in range(1500)]
    frames = [edgelink.encode(m) for m in sent]
    clean = np.frombuffer(b"".join(frames), np.uint8)
    owner = np.repeat(np.arange(len(frames)), [len(f) for f in frames])
    hit = np.flatnonzero(rng.random(len(clean)) < rate)
    values = rng.integers(1, 256, len(hit)).astype(np.uint8)
    spoiled = {"flip": lambda: np.bitwise_xor.at(data := clean.copy(), hit, values) or data,
               "drop": lambda: np.delete(clean, hit), "insert": lambda: np.insert(clean, hit, values)}[kind]()
    found = Framer().feed(spoiled.tobytes())
    honest = {m.seq: parts(m) for m in sent}
    assert all(parts(m) == honest[m.seq] for m in found)
    # a byte on a border may cost the neighbour too
    assert len(sent) - len(found) <= 2 * len(set(owner[hit])) and len(found) > 0


def test_results_of_another_model_are_refused_with_the_way_out():
    from train.say import UserError
    edgelink.refuse_other_model(IDENTITY, IDENTITY, "pico")
    with pytest.raises(UserError) as caught:
        edgelink.refuse_other_model(IDENTITY, bytes(32), "pico")
    assert "--board pico --flash" in str(caught.value)


class Slow:
    """A line to a board that confirms everything, 0.3 s later each time."""

    def __init__(self):
        self.now, self.answers, self.framer, self.starts = 0.0, b"", Framer(), []

    def write(self, data):
        for message in self.framer.feed(data):
            self.starts += [self.now] if isinstance(message.payload, edgelink.Start) else []
            self.answers += edgelink.encode(Message(edgelink.Ack(message.seq, message.payload.TYPE, 0), 0, 0))

    def read(self, seconds):
        self.now += 0.3
        data, self.answers = self.answers, b""
        return data

    def clock(self):
        return self.now


def test_many_requests_in_a_row_keep_the_lease():
    line = Slow()
    device = Device(line)
    device.about = types.SimpleNamespace(boot_id=1, max_frame=64)
    device._start, device._beat = (0, 0, 0), HEARTBEAT
    device.inject(np.zeros((400, 2), np.int32), 3)
    assert line.now > 5 and np.diff(line.starts).max() < 2 * HEARTBEAT and line.starts[0] < 2 * HEARTBEAT
