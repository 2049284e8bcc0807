# SPDX-License-Identifier: Apache-2.0
"""The whole firmware on this computer, with time that a test moves: what a host sees of it over EdgeLink."""

import itertools

import boards
import numpy as np
import pytest
from boards import CUT, FS, STUCK, UP, Board, Kind, ecg, expected, scores

from compress import reference
from targets import edgelink, firmware_image, toolchain
from targets.firmware_image import Slot, Source
from train import frontend
from train.say import MissingError, UserError

LINK, SENSOR = Kind(), Kind(sensor=True)
BOTH = Kind(sensor=True, count=2, channels=2)
TURNED = Kind(fs=125, channels=2, leads=(-2,))


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Kind -> a freshly started board."""
    if toolchain.missing("host"):
        pytest.skip(toolchain.missing("host"))
    folder, built = tmp_path_factory.mktemp("boards"), {}

    def make(kind: Kind) -> Board:
        if kind not in built:
            built[kind] = boards.build(kind, folder / str(len(built)))
        return Board(built[kind], kind)
    return make


def firsts(name: str, count: int, begin: int = 0) -> list[int]:
    """first_index of the decisions of a stream that began at `begin`."""
    hop = boards.models()[name][1].trigger.hop
    return [begin + frontend.SETTLE_S * FS + i * hop for i in range(count)]


def sensing(make, kind: Kind, seconds: float, **options):
    """(board, device, what its sensor will see)."""
    b = make(kind)
    uv = ecg(seconds, kind.channels)
    b.sense(uv, **options)
    return b, b.device(), uv


def test_hello_tells_who_the_device_is(board):
    about = board(BOTH).device().hello()
    assert (about.board_name, about.fs, about.channels, about.caps) == ("host", 250, 2, edgelink.HAS_SENSOR)
    assert edgelink.STATES[about.state] == "running" and len(about.model) == 2
    for told, (graph, manifest) in zip(about.model, boards.models().values(), strict=True):
        assert told.identity == manifest.identity and told.ok
        assert (told.hop, told.window, told.leads, told.classes) == (
            manifest.trigger.hop, manifest.window, *graph.tensors[graph.inputs[0]].shape[:1], 3)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_injected_microvolts_decide_as_the_reference_does(board, width):
    device, uv = board(LINK).device(), ecg(9)
    device.start()
    found = device.inject(uv, width)
    want = expected("model", uv)
    assert len(want) > 20 and np.array_equal(scores(found), want)
    assert [r.top for r in found] == list(want.argmax(1)) and [r.present for r in found] == list(1 << want.argmax(1))
    assert [r.first_index for r in found] == firsts("model", len(found))
    assert all(r.flags == edgelink.FROM_INJECT and r.n == 160 for r in found)


def test_injected_codes_decide_as_the_reference_does(board):
    device, (graph, _) = board(LINK).device(), boards.models()["model"]
    codes = np.random.default_rng(0).integers(-128, 128, (1, 700)).astype(np.int8)
    device.start()
    for _ in range(2):                  # first_index 0 begins anew
        assert np.array_equal(scores(device.inject(codes.T, 1)), reference.stream(graph, {graph.inputs[0]: codes}, 40))


def test_an_injected_window_is_evaluated_as_the_reference_does(board):
    device, (graph, _) = board(LINK).device(), boards.models()["model"]
    x = np.random.default_rng(1).integers(-128, 128, (3, 1, 160)).astype(np.int8)
    device.start()
    found = [device.inject_window(window.tobytes())[0] for window in x]
    assert np.array_equal(scores(found), reference.run(graph, {graph.inputs[0]: x}))
    with pytest.raises(UserError, match="more bytes"):
        device.inject_window(bytes(161))


def test_live_samples_decide_as_the_reference_does(board):
    b, uv = board(LINK), ecg(8)
    device = b.device()
    device.start()
    for at in range(0, len(uv), 25):
        device.live(uv[at:at + 25], at)
        device.poll(0.1)
    assert np.array_equal(scores(device.results), expected("model", uv))
    assert not any(r.flags for r in device.results) and device.skipped == 0
    status = device.statuses()[-1]
    assert (status.missing, status.gaps, status.late, status.damaged) == (0, 0, 0, 0) and status.sleep_permille > 900


def test_the_sensor_decides_as_the_reference_does_and_its_samples_come_along(board):
    _, device, uv = sensing(board, SENSOR, 8)
    device.start(samples=True)
    device.poll(8.5)
    want = expected("model", uv)
    assert np.array_equal(scores(device.results), want)
    assert [r.first_index for r in device.results] == firsts("model", len(want))
    sent = [m.payload for m in device.others if isinstance(m.payload, edgelink.Samples)]
    got = np.concatenate([s.data for s in sent])
    assert np.array_equal(got, uv[sent[0].first_index:][:len(got)]) and len(got) > 1900
    assert all(a.first_index + a.n == b.first_index for a, b in itertools.pairwise(sent))


def test_leads_are_mapped_and_rates_converted(board):
    device, uv = board(TURNED).device(), ecg(8, 2, fs=125)
    device.start()
    assert np.array_equal(scores(device.inject(uv, 3)), expected("model", -uv[:, 1:], 125))


def test_two_models_in_one_image_decide_as_if_alone(board):
    _, device, uv = sensing(board, BOTH, 8)
    device.start()
    device.poll(8.5)
    for number, (name, leads) in enumerate((("model", 1), ("other", 2))):
        found = [r for r in device.results if r.model == number]
        assert np.array_equal(scores(found), expected(name, uv[:, :leads])) and len(found) > 10
    assert all(r.top == -1 for r in device.results if r.model == 1)     # a threshold rule has no best class


def test_the_host_chooses_which_models_run(board):
    _, device, _ = sensing(board, BOTH, 9)
    device.start(models=0b10)
    device.poll(9)
    assert {r.model for r in device.results} == {1}
    with pytest.raises(UserError, match="range"):
        device.start(models=0b100)


# ---- gaps, lines, leases


def test_a_lost_frame_begins_the_stream_anew_and_is_counted(board):
    b, uv = board(LINK), ecg(12)
    device = b.device()
    device.start()
    for at in range(0, len(uv), 25):
        if at != 1500:
            device.live(uv[at:at + 25], at)
        if at == 2000:
            device.live(uv[at:at + 25], at)     # what comes twice counts once
        device.poll(0.1)
    device.poll(1)
    parts = expected("model", uv[:1500]), expected("model", uv[1525:])
    assert np.array_equal(scores(device.results), np.concatenate(parts))
    assert [r.first_index for r in device.results] == (
        firsts("model", len(parts[0])) + firsts("model", len(parts[1]), 1525))
    status = device.statuses()[-1]
    assert (status.missing, status.gaps, status.samples) == (25, 1, len(uv))


def test_results_wait_in_the_ring_while_the_line_is_cut(board):
    b, device, uv = sensing(board, SENSOR, 12)
    device.start()
    device.poll(4)
    before = len(device.results)
    b.line(CUT)
    device.poll(4)
    assert len(device.results) == before
    b.line(UP)
    device.start()
    device.poll(5)
    assert np.array_equal(scores(device.results), expected("model", uv)) and device.skipped == 0
    assert device.statuses()[-1].results_lost == 0


def test_what_the_ring_cannot_hold_is_dropped_oldest_first_and_counted(board):
    b, device, uv = sensing(board, SENSOR, 16)
    b.run(16.5)
    device.start()
    device.poll(1.5)
    want = expected("model", uv)
    gone = len(want) - 32
    assert gone > 10 and np.array_equal(scores(device.results), want[gone:])
    assert device.skipped == device.statuses()[-1].results_lost == gone


def test_a_result_that_is_lost_on_the_way_is_sent_again(board):
    b, device, uv = sensing(board, SENSOR, 9)
    device.start()
    rng = np.random.default_rng(2)
    clean = b.read

    def spoiling(seconds):
        data = bytearray(clean(seconds))
        for at in np.flatnonzero(rng.random(len(data)) < 2e-3):
            data[at] ^= 0x55
        return bytes(data)
    b.read = spoiling
    device.poll(9)
    b.read = clean
    device.poll(3)
    assert device.framer.damaged > 0 and device.skipped == 0
    assert np.array_equal(scores(device.results), expected("model", uv))


def test_without_the_lease_nothing_is_sent_but_answers(board):
    b, device, uv = sensing(board, SENSOR, 20)
    device.start()
    b.run(5.1)
    b.taken()
    b.run(2)                                            # no heartbeat since seven seconds
    assert b.taken() == b""
    assert edgelink.STATES[device.hello().state] == "running"
    device.start()
    device.poll(13.5)
    assert np.array_equal(scores(device.results)[-5:], expected("model", uv)[-5:])


def test_the_lease_ends_a_session_that_the_host_fed(board):
    b = board(LINK)
    device = b.device()
    device.start()
    device.live(ecg(1), 0)
    b.run(5.2)
    assert edgelink.STATES[device.hello().state] == "idle"
    device.start()
    device.stop()
    device.poll(0.1)
    assert edgelink.STATES[device.hello().state] == "idle"


def test_a_line_that_takes_nothing_drops_whole_frames_and_counts_them(board):
    b, device, uv = sensing(board, SENSOR, 12)
    device.start(samples=True, lease_ms=60000)
    device.poll(3)
    b.line(STUCK)
    b.run(5)
    b.line(UP)
    device.poll(4.5)
    assert device.framer.damaged == 0 and device.statuses()[-1].dropped > 0
    assert np.array_equal(scores(device.results), expected("model", uv))


# ---- time


def test_a_slow_core_is_late_and_its_lost_samples_are_counted(board):
    b, device, _ = sensing(board, SENSOR, 20)
    device.start(lease_ms=60000)
    device.poll(4)
    assert not any(r.flags & edgelink.LATE for r in device.results)
    b.slow(40000)                                       # a look at the clock takes as long as ten samples
    device.poll(8)
    late = [r for r in device.results if r.flags & edgelink.LATE]
    status = device.statuses()[-1]
    assert late and all(r.latency_ms > 160 for r in late) and status.late >= len(late)
    assert status.overruns > 0 and status.gaps > 0 and status.worst_us >= 40000
    b.slow(0)
    device.poll(9)
    assert not device.results[-1].flags & edgelink.LATE


def test_host_samples_that_come_in_bursts_are_not_late(board):
    b, uv = board(LINK), ecg(16)
    device = b.device()
    device.start()
    for n, at in enumerate(range(0, len(uv), 25)):      # a tenth of a second at once, at odd times
        device.poll(0.07 if n % 2 else 0.13)
        device.live(uv[at:at + 25], at)
    device.poll(1)
    assert device.results and device.statuses()[-1].late == 0


def test_a_dead_sensor_starves_the_watchdog(board):
    b, device, _ = sensing(board, SENSOR, 3)
    first = device.hello().boot_id
    device.start(lease_ms=60000)
    device.poll(6)
    assert b.resets == 0 and any(isinstance(m.payload, edgelink.Log) for m in device.others)
    b.run(8)
    assert b.resets == 1
    with pytest.raises(UserError, match="before its reset"):
        device.start()
    assert device.hello().boot_id != first
    device.start()


def test_a_silent_host_is_no_reason_to_reset(board):
    b = board(LINK)
    device = b.device()
    device.start()
    device.live(ecg(1), 0)
    device.poll(30)
    assert b.resets == 0 and edgelink.STATES[device.hello().state] == "running"


# ---- what is wrong


@pytest.mark.parametrize("byte", [0, 5, 20, 60])
def test_damaged_model_data_is_refused_but_the_device_answers(board, byte):
    b = board(LINK)
    b.boot(damage=byte)
    device = b.device()
    about = device.hello()
    assert edgelink.STATES[about.state] == "refused" and not about.model[0].ok
    assert [m.payload.code for m in device.others if isinstance(m.payload, edgelink.Error)] == [4]
    with pytest.raises(UserError, match="flash it again"):
        device.start()
    b.run(20)
    assert b.resets == 0


def test_an_electrode_that_is_off_makes_its_windows_unreliable(board):
    off = np.zeros(3000, bool)
    off[1200:1230] = True
    _, device, _ = sensing(board, SENSOR, 12, off=off)
    device.start(samples=True)
    device.poll(12)
    for r in device.results:
        apart = r.first_index + r.n <= 1200 - 16 or r.first_index >= 1230 + 500 + 16     # the filters settle for 2 s
        inside = r.first_index < 1229 and r.first_index + r.n > 1201
        bad = bool(r.flags & edgelink.UNRELIABLE)
        assert bad if inside else not bad if apart else True
        assert not bad or r.top == -1
    assert any(m.flags & edgelink.LEAD_OFF for m in device.others)


@pytest.mark.parametrize("key,value,reason", [("age", 200, "range"), ("sex", 3, "range"), ("status_ms", -1, "range"),
                                              ("log_level", 9, "range"), (99, 0, "unknown setting")])
def test_settings_are_checked(board, key, value, reason):
    device = board(LINK).device()
    with pytest.raises(UserError, match=reason):
        device.request(edgelink.Set(edgelink.KEYS.get(key, 99), value))
    device.put("age", 63)
    device.put("sex", 2)


def test_a_setting_changes_how_often_the_device_reports(board):
    _, device, _ = sensing(board, SENSOR, 5)
    device.start()
    device.put("status_ms", 200)
    device.poll(3)
    assert 13 <= len(device.statuses()) <= 17


def test_requests_that_do_not_fit_are_refused(board):
    device = board(LINK).device()
    device.hello()
    device.send(edgelink.Samples.of(0, ecg(0.1), 3))
    device.poll(0.1)
    assert [edgelink.ERRORS[m.payload.code] for m in device.others] == ["no START came before it"]
    with pytest.raises(UserError, match="no START"):
        device.inject(ecg(0.1), 3)
    device.start()
    with pytest.raises(UserError, match="does not fit"):
        device.inject(ecg(0.1, 2), 3)
    with pytest.raises(UserError, match="range"):
        device.inject(ecg(0.1), 3, first=7)
    with pytest.raises(MissingError, match="STRANGE"):
        device.request(type("Strange", (edgelink.Stop,), {"TYPE": 0x66})())


def test_whatever_bytes_come_the_device_goes_on(board):
    b = board(LINK)
    rng = np.random.default_rng(3)
    device = b.device()
    about = device.hello()
    for _ in range(300):
        kind = int(rng.choice([1, 3, 4, 5, 6, 0x10, 0x21, 0x21, 0x66]))
        body = bytearray(rng.integers(0, 256, int(rng.integers(0, 40))).astype(np.uint8))
        if kind == 3 and len(body) >= 8:
            body[4:8] = about.boot_id.to_bytes(4, "little")
        if kind in (0x10, 0x21) and len(body) >= 8:
            body[:8] = bytes([*rng.integers(0, 2, 4), rng.integers(0, 12), 0, rng.integers(0, 3), rng.integers(0, 5)])
        head = edgelink.HEAD.pack(0x10 | int(rng.integers(16)), kind, 0, 0)
        whole = head + bytes(body)
        b.write(b"\0" + edgelink.cobs.encode(whole + edgelink.crc16(whole).to_bytes(2, "little")) + b"\0")
        b.write(rng.integers(0, 256, int(rng.integers(0, 30))).astype(np.uint8).tobytes() + b"\0")
        b.run(0.01)
    b.taken()
    assert device.hello().boot_id == about.boot_id
    device.start()
    uv = ecg(4)
    assert np.array_equal(scores(device.inject(uv, 3)), expected("model", uv))


def test_an_image_that_the_application_cannot_serve_is_refused_before_it_is_built():
    manifest = boards.models()["other"][1]
    for slots, source, board, match in (
            ([Slot("m", manifest)], Source(250, 1, 1), "pico", "leads I, II"),
            ([Slot("m", manifest, (1, 3))], Source(250, 1, 2), "pico", "leads I, II"),
            ([], Source(250, 1, 1), "pico", "0 models"),
            ([Slot("m", manifest)], Source(250, 1, 9), "pico", "9 channels"),
            ([Slot("m", manifest)], Source(250, 1, 2), 'a"b', "board")):
        with pytest.raises(UserError, match=match):
            firmware_image.image_c(board, 0, slots, source)


def test_four_minutes_of_the_sensor_end_without_a_lost_sample(board):
    b, device, uv = sensing(board, SENSOR, 16)
    device.start()
    for _ in range(15):
        b.sense(uv)
        device.poll(16)
    status = device.statuses()[-1]
    assert (status.overruns, status.late, status.gaps, device.skipped) == (0, 0, 0, 0)
    assert len(device.results) > 1400
