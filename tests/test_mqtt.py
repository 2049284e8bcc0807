# SPDX-License-Identifier: Apache-2.0
"""Decisions over MQTT, by a real broker: topics, last will, TLS, passwords, and a broker that goes away."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from recorded import decision, session, stretch

from firmware_bridge.session import Beat, Event, Gap, Quality
from firmware_bridge.sinks import mqtt
from train.say import UserError

paho = pytest.importorskip("paho.mqtt.client", reason='paho-mqtt is not installed: pip install -e ".[mqtt]"')
BROKER = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
broker_here = pytest.mark.skipif(BROKER is None, reason="mosquitto is not installed: apt-get install mosquitto")
ITEMS = [stretch(0, 25), Beat(100, 71.64), Quality(250, ("A", "C"), ("", "noise")), Gap(250, 12, "lost"),
         decision(500, ("AF",), beat=450), decision(750, (), "gap"), Event(800, "lead-off", "lead I is off", "warning")]


def until(what, seconds=15.0):
    """What `what` says once it says something; fails after so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen")


class Broker:
    """A mosquitto on a port of its own, which can be stopped and started again."""

    def __init__(self, folder: Path, *lines: str):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.config, self.process = folder / "broker.conf", None
        self.config.write_text("\n".join(["per_listener_settings false", "user root",
                                          f"listener {self.port} 127.0.0.1", *lines]) + "\n")
        self.start()

    def start(self):
        self.process = subprocess.Popen([BROKER, "-c", str(self.config)], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self):
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def broker(tmp_path):
    one = Broker(tmp_path, "allow_anonymous true")
    yield one
    one.stop()


@contextmanager
def listening(port, ready=None):
    """[(topic, retained, object)] of everything that is published."""
    heard, there = [], []
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda c, *_: c.subscribe("#", 1)
    client.on_subscribe = lambda *_: there.append(True)
    client.on_message = lambda _c, _u, m: heard.append((m.topic, m.retain, json.loads(m.payload)))
    if ready is not None:
        ready(client)
    client.reconnect_delay_set(1, 1)
    client.connect("localhost", port)
    client.loop_start()
    until(lambda: there)
    try:
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


def begun(url, config=None):
    """(sink, session) once it is connected."""
    sink, one = mqtt.MqttClient(url, config), session()
    sink.begin(one)
    until(lambda: sink.client.is_connected() or sink._failed)
    return sink, one


@broker_here
def test_everything_but_samples_arrives_under_its_topic(broker):
    with listening(broker.port) as heard:
        sink, one = begun(f"mqtt://localhost:{broker.port}")
        for item in ITEMS:
            sink.take(item)
        sink.tick(0.0)
        until(lambda: len(heard) >= 7)
        sink.end()
        until(lambda: heard[-1][2].get("status") == "ended")
    root = f"leadedge/{one.id}/"
    kinds = [topic.removeprefix(root) for topic, _, _ in heard]
    assert kinds == ["status", "beat", "quality", "gap", "decision", "decision", "event", "status"]
    what = [w for _, _, w in heard]
    assert what[0]["status"] == "online" and what[0]["leads"] == ["I", "II"]
    assert what[1] == {"type": "beat", "index": 100, "seconds": 0.4, "bpm": 71.6}
    assert what[3] == {"type": "gap", "index": 250, "seconds": 1.0, "length": 12, "reason": "lost"}
    assert what[4]["present"] == ["AF"] and what[4]["logits"] == [-50, -128, 127] and what[4]["beat"] == 450
    assert what[5]["unreliable"] == "gap" and what[5]["present"] == []


@broker_here
def test_a_newcomer_hears_how_it_stands_and_a_device_that_is_cut_off_is_lost(broker):
    sink, one = begun(f"mqtt://localhost:{broker.port}/ward/3")
    until(lambda: sink.client.want_write() is False)
    with listening(broker.port) as heard:
        until(lambda: heard)
        assert heard[0][:2] == (f"ward/3/{one.id}/status", True) and heard[0][2]["status"] == "online"
        sink.client.socket().shutdown(socket.SHUT_RDWR)         # not a word of farewell
        until(lambda: any(w["status"] == "lost" for _, _, w in heard))
        until(lambda: heard[-1][2]["status"] == "online")       # and it comes back by itself
        sink.end()


@broker_here
def test_what_happens_while_the_broker_is_away_arrives_later_and_in_order(broker, monkeypatch):
    monkeypatch.setattr(mqtt, "QUEUE", 150)
    sink, _ = begun(f"mqtt://localhost:{broker.port}")
    broker.stop()
    until(lambda: not sink.client.is_connected())
    for index in range(400):
        sink.take(Beat(index, None))
        sink.tick(0.0)
    assert len(sink.waiting) == 150 and sink.dropped == 250
    broker.start()
    with listening(broker.port) as heard:
        def beats():
            sink.tick(0.0)
            return [w["index"] for _, _, w in heard if w["type"] == "beat"][-150:]
        until(lambda: len(beats()) == 150)
        assert beats() == list(range(250, 400))
        until(lambda: any(w.get("dropped") == 250 for _, _, w in heard))
        sink.end()


def test_a_broker_that_is_not_there_does_not_hold_anything_up():
    began = time.monotonic()
    sink = mqtt.MqttClient("mqtt://localhost:1")
    sink.begin(session())
    for index in range(10_000):
        sink.take(Beat(index, 60.0))
        sink.tick(0.0)
    assert len(sink.waiting) == mqtt.QUEUE and time.monotonic() - began < 5
    sink.end()


def _openssl(folder, *words):
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """An authority, a broker's certificate for localhost by it, and another authority; broker's passwords."""
    folder = tmp_path_factory.mktemp("keys")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "other"):
        _openssl(folder, "req", "-x509", *curve, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
                 "-subj", f"/CN={name}")
    _openssl(folder, "req", *curve, "-keyout", "broker.key", "-out", "broker.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    _openssl(folder, "x509", "-req", "-in", "broker.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
             "-out", "broker.pem", "-days", "2", "-extfile", "names")
    subprocess.run(["mosquitto_passwd", "-b", "-c", "passwords", "bed-4", "a secret"], cwd=folder, check=True,
                   capture_output=True)
    return folder


@pytest.fixture
def guarded(keys, tmp_path):
    """A broker that wants TLS and a password."""
    one = Broker(tmp_path, "allow_anonymous false", f"password_file {keys / 'passwords'}",
                 f"certfile {keys / 'broker.pem'}", f"keyfile {keys / 'broker.key'}")
    yield one
    one.stop()


def config(folder, text, mode=0o600):
    path = folder / "mqtt.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


@broker_here
def test_with_tls_and_the_right_password_it_arrives(guarded, keys, tmp_path):
    def ready(client):
        client.username_pw_set("bed-4", "a secret")
        client.tls_set(str(keys / "ca.pem"))
    right = config(tmp_path, f'username = "bed-4"\npassword = "a secret"\nca = "{keys / "ca.pem"}"\n')
    with listening(guarded.port, ready) as heard:
        sink, _ = begun(f"mqtts://localhost:{guarded.port}", right)
        sink.take(decision(500))
        sink.tick(0.0)
        until(lambda: any(topic.endswith("decision") for topic, _, _ in heard))
        sink.end()


@broker_here
@pytest.mark.parametrize("password, ca, host, words", [("wrong", "ca", "localhost", "refuses us: not authorized"),
                                                       ("a secret", "other", "localhost", "no trusted connection"),
                                                       ("a secret", "ca", "127.0.0.1", "no trusted connection")])
def test_a_wrong_password_an_unknown_authority_and_another_name_are_told(password, ca, host, words, guarded, keys,
                                                                         tmp_path):
    wrong = config(tmp_path, f'username = "bed-4"\npassword = "{password}"\nca = "{keys / ca}.pem"\n')
    sink, _ = begun(f"mqtts://{host}:{guarded.port}", wrong)
    with pytest.raises(UserError, match=words):
        sink.tick(0.0)
    sink.end()


@pytest.mark.parametrize("text, mode, words", [('password = "x"', 0o640, "others may read"),
                                               ('pasword = "x"', 0o600, "holds pasword"), ("port = 5", 0o600, "holds"),
                                               ("password = ", 0o600, "cannot be read"),
                                               ('ca = "nothing.pem"', 0o600, "certificates cannot be read")])
def test_a_file_that_is_open_or_wrong_is_refused(text, mode, words, tmp_path):
    with pytest.raises(UserError, match=words):
        mqtt.MqttClient("mqtts://localhost", config(tmp_path, text, mode))


def test_a_password_never_goes_over_the_net_in_the_clear(tmp_path):
    with pytest.raises(UserError, match="in the clear"):
        mqtt.MqttClient("mqtt://broker.example", config(tmp_path, 'username = "x"\npassword = "y"'))


@pytest.mark.parametrize("url", ("broker", "http://broker", "mqtt://", "mqtt://u:p@broker", "mqtt://broker:x",
                                 "mqtt://broker/a/#", "mqtt://broker?x=1"))
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UserError):
        mqtt.address(url)


def test_an_address_has_the_usual_ports():
    assert mqtt.address("mqtts://broker.example") == (True, "broker.example", 8883, "leadedge")
    assert mqtt.address("mqtt://broker.example:99/ward/3/") == (False, "broker.example", 99, "ward/3")


def test_numbers_of_any_kind_become_json():
    one = session()
    what = [mqtt.record(item, one) for item in [*ITEMS, Beat(np.int64(3), np.float64(60.26))]]
    assert json.loads(json.dumps(what))[-1] == {"type": "beat", "index": 3, "seconds": 0.012, "bpm": 60.3}
