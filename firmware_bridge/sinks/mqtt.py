# SPDX-License-Identifier: Apache-2.0
"""Decisions of many devices into one place: an MQTT client that never makes the session wait.

    leadedge/<session id>/decision, beat, quality, gap, event       one JSON object a message, as in sinks/jsonl.py
    leadedge/<session id>/status                                    retained: online, ended, or lost (the last will)

Messages wait in a bounded queue for a broker that is away; the oldest are dropped and counted in the status. Name,
password and certificates come from a TOML file that only its owner may read, never from the command line:

    username = "bed-4"
    password = "..."
    ca = "/etc/ssl/our-ca.pem"          # who signed the broker's certificate; the system's own list without it
    cert = "client.pem"                 # where the broker wants one of ours
    key = "client.key"
"""

from __future__ import annotations

import contextlib
import json
import ssl
import stat
import sys
import time
import urllib.parse
from collections import deque
from pathlib import Path

from firmware_bridge.session import Session, Stretch
from firmware_bridge.sinks.jsonl import heading, record
from train.say import UserError, need, warn

PORTS = {"mqtt": 1883, "mqtts": 8883}
FIELDS = ("username", "password", "ca", "cert", "key")
QUEUE, FLIGHT = 4096, 100           # messages that wait here, and in the library
KEEPALIVE_S, END_S = 15, 2.0
QOS, FULL = 1, 15                   # at least once; the library's word for a queue that is full
REFUSED = {"Bad user name or password", "Not authorized", "Client identifier not valid", "Banned",
           "Unsupported protocol version"}


def address(url: str) -> tuple[bool, str, int, str]:
    """(TLS, host, port, prefix of the topics) of mqtt://host, mqtts://host:8883 or mqtts://host/ward/3."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:
        port = None
    if parts.username or parts.password:
        raise UserError("a name or password in the address can be read by everyone on this computer",
                        "them in a file", "--mqtt-config FILE with username = and password =")
    if not port or not parts.hostname or set(url) & set("+#?"):
        raise UserError(f"{url} is no address of a broker", "mqtt://host:port or mqtts://host:port",
                        "for example --mqtt mqtts://broker.example:8883")
    return parts.scheme == "mqtts", parts.hostname, port, parts.path.strip("/") or "leadedge"


def settings(path: str | Path | None) -> dict[str, str]:
    """The fields of the file; UserError when others may read it, or when it holds anything else."""
    if path is None:
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        mode = stat.S_IMODE(Path(path).stat().st_mode)
        held = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "a TOML file with " + ", ".join(FIELDS)) from error
    if mode & 0o077:
        raise UserError(f"others may read {path}", "a file for its owner only", f"chmod 600 {path}")
    wrong = [k for k, v in held.items() if k not in FIELDS or not isinstance(v, str)]
    if wrong:
        raise UserError(f"{path} holds {', '.join(wrong)}", "texts named " + ", ".join(FIELDS))
    for name in ("ca", "cert", "key"):
        if name in held:
            held[name] = str(Path(path).parent / held[name])
    return held


class MqttClient:
    """url: as in address(). config: path of the file with the credentials."""

    def __init__(self, url: str, config: str | Path | None = None):
        need("paho", "mqtt")
        import paho.mqtt.client as paho
        self.tls, self.host, self.port, self.prefix = address(url)
        held = settings(config)
        if "password" in held and not self.tls and self.host not in ("localhost", "127.0.0.1", "::1"):
            raise UserError("a password would go over the net in the clear", f"mqtts://{self.host}")
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.max_queued_messages_set(FLIGHT)
        self.client.reconnect_delay_set(0.5, 30)
        self.client.connect_timeout = 5.0
        if "username" in held:
            self.client.username_pw_set(held["username"], held.get("password"))
        if self.tls:
            self.client.tls_set_context(_context(held))
        self.client.on_connect, self.client.on_connect_fail = self._connected, self._unreachable
        self.waiting: deque[tuple[str, str]] = deque()
        self.sent = self.dropped = 0
        self._failed: UserError | None = None
        self._told = self._begun = False

    def begin(self, session: Session) -> None:
        """Connect, without waiting for it."""
        self.session = session
        self._root = f"{self.prefix}/{session.id}"
        self.client.will_set(f"{self._root}/status", json.dumps({"status": "lost", "session": session.id}), QOS, True)
        self.client.connect_async(self.host, self.port, KEEPALIVE_S)
        self.client.loop_start()
        self._begun = True

    def take(self, item) -> None:
        """Into the queue; samples do not go out."""
        if isinstance(item, Stretch):
            return
        what = record(item, self.session)
        if len(self.waiting) >= QUEUE:
            self.waiting.popleft()
            self.dropped += 1
        self.waiting.append((f"{self._root}/{what['type']}", json.dumps(what)))

    def tick(self, now: float) -> None:
        """Hand over what the library takes; UserError when the broker will never have us."""
        if self._failed is not None:
            raise self._failed
        while self.waiting and self.client.is_connected():
            if not self._published(*self.waiting[0]):
                return
            self.waiting.popleft()
            self.sent += 1

    def end(self) -> None:
        """What still waits, for two seconds at most; then a word that this is the end."""
        if not self._begun:
            return
        self._begun, until = False, time.monotonic() + END_S
        with contextlib.suppress(UserError):
            while self.waiting and self.client.is_connected() and time.monotonic() < until:
                self.tick(0.0)
                time.sleep(0.01)
        if self.client.is_connected():
            done = self.client.publish(f"{self._root}/status", json.dumps(self._status("ended")), QOS, True)
            with contextlib.suppress(RuntimeError, ValueError):
                done.wait_for_publish(max(until - time.monotonic(), 0.5))
        self.client.disconnect()
        self.client.loop_stop()

    def _published(self, topic: str, text: str) -> bool:
        """Whether the library has taken it; what it takes it sends, now or when the broker is there again."""
        return self.client.publish(topic, text, QOS).rc != FULL

    def _status(self, word: str) -> dict:
        return heading(self.session) | {"type": "status", "status": word, "dropped": self.dropped}

    # ---- in the client's own thread

    def _connected(self, client, userdata, flags, reason, properties) -> None:
        if not reason.is_failure:
            self._told = False
            client.publish(f"{self._root}/status", json.dumps(self._status("online")), QOS, True)
        elif str(reason) in REFUSED:
            self._failed = UserError(f"the broker {self.host} refuses us: {str(reason).lower()}",
                                     "username and password in the file of --mqtt-config")
            client.disconnect()

    def _unreachable(self, client, userdata) -> None:
        """Called inside the library's own handler of the error."""
        error = sys.exc_info()[1]
        if isinstance(error, ssl.SSLError):
            words = getattr(error, "verify_message", "") or error.reason or str(error)
            self._failed = UserError(f"no trusted connection to the broker {self.host}: {words}",
                                     "a certificate for this name by a known authority",
                                     'ca = "FILE" in the file of --mqtt-config names another authority')
            client.disconnect()
        elif not self._told:
            self._told = True
            warn(f"the broker {self.host}:{self.port} does not answer ({error}); messages wait for it")


def _context(held: dict[str, str]) -> ssl.SSLContext:
    """TLS that checks the broker's certificate and name."""
    try:
        context = ssl.create_default_context(cafile=held.get("ca"))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if "cert" in held:
            context.load_cert_chain(held["cert"], held.get("key"))
    except (OSError, ValueError) as error:
        raise UserError(f"the certificates cannot be read: {error}", "PEM files named ca, cert and key") from error
    return context
