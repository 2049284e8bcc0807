# SPDX-License-Identifier: Apache-2.0
"""A debug probe with a Cortex-M4 on it, as a plugin of pyocd: debug port, memory access port, core halt and reset.

pyocd finds it by the entry point that `install` writes. Memory is all RAM, kept in a JSON file from one run of pyocd to
the next: {"memory": {address: word}, "serial": ..., "fault": ...}. fault: "worn" (one written word does not hold),
"no chip" (nothing answers on the wire).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pyocd.core import exceptions
from pyocd.core.plugin import Plugin
from pyocd.probe.debug_probe import DebugProbe

STATE = "SIMULATED_PROBE"
DPIDR, AP_IDR, ROM_TABLE = 0x2BA0_1477, 0x2477_0011, 0xE00F_F000
DHCSR = 0xE000_EDF0
# addresses of a core's identification, and what a Cortex-M4 says there
FIXED = {ROM_TABLE: 0xFFF0_F003, ROM_TABLE + 4: 0, 0xE000_ED00: 0x410F_C241}
for _base, _class, _part in ((ROM_TABLE, 0x10, 0xC4), (0xE000_E000, 0xE0, 0x0C)):
    FIXED |= {_base + 0xFD0 + 4 * i: v for i, v in enumerate((4, 0, 0, 0, _part, 0xB0, 0x0B, 0, 0x0D, _class, 5, 0xB1))}


def install(folder: Path, state: Path) -> dict[str, str]:
    """Environment variables under which pyocd has this probe."""
    info = folder / "simulated_probe-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: simulated-probe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyocd.probe]\nsimulated = tests.probe:SimulatedPlugin\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[1])]), STATE: str(state)}


class SimulatedPlugin(Plugin):
    """What pyocd loads."""

    name = "simulated"

    def load(self):
        """The probe's class."""
        return SimulatedProbe


class SimulatedProbe(DebugProbe):
    """One probe, if its file is there."""

    vendor_name = product_name = "Simulated"
    supported_wire_protocols = (DebugProbe.Protocol.DEFAULT, DebugProbe.Protocol.SWD)
    wire_protocol = DebugProbe.Protocol.SWD
    associated_board_info = None

    @classmethod
    def get_all_connected_probes(cls, unique_id=None, is_explicit=False):
        """[the probe]"""
        path = Path(os.environ.get(STATE, "/nowhere"))
        return [cls(path)] if path.is_file() else []

    @classmethod
    def get_probe_with_id(cls, unique_id, is_explicit=False):
        """The probe, if that is its id."""
        return next((p for p in cls.get_all_connected_probes() if p.unique_id == unique_id), None)

    def __init__(self, path: Path):
        super().__init__()
        self._path, self._open, self._state = path, False, json.loads(path.read_text())
        self._memory = {int(a): v for a, v in self._state["memory"].items()}
        self._dp, self._ap, self._halted = {}, {}, False

    unique_id = property(lambda self: self._state["serial"])
    is_open = property(lambda self: self._open)
    capabilities = property(lambda self: {self.Capability.BANKED_DP_REGISTERS})

    def open(self):
        """Start of a session."""
        self._open = True

    def close(self):
        """End of a session: keep the memory."""
        self._open = False
        self._path.write_text(json.dumps(self._state | {"memory": self._memory}))

    def connect(self, protocol=None):
        """Switch the wire to SWD."""

    def disconnect(self):
        """Leave the wire alone."""

    def swj_sequence(self, length, bits):
        """Line reset and the like."""

    def set_clock(self, frequency):
        """Any will do."""

    def reset(self):
        """Pulse nRESET."""
        self._halted = False

    def assert_reset(self, asserted):
        """Hold nRESET."""
        self._halted = False

    def is_reset_asserted(self):
        """Never for long."""
        return False

    def read_dp(self, addr, now=True):
        """0 DPIDR, 4 CTRL/STAT with every power-up acknowledged."""
        if self._state.get("fault") == "no chip":
            raise exceptions.TransferError("No ACK received")
        control = self._dp.get(4, 0)
        value = {0: DPIDR, 4: control | (control & 0x5000_0000) << 1}.get(addr & 0xF, 0)
        return value if now else lambda: value

    def write_dp(self, addr, data):
        """Remember."""
        self._dp[addr & 0xF] = data

    def read_ap(self, addr, now=True):
        """A register of access port 0; there is no other."""
        value = self._read(addr & 0xFF) if addr >> 24 == 0 else 0
        return value if now else lambda: value

    def write_ap(self, addr, data):
        """A register of access port 0."""
        register = addr & 0xFF
        if register == 0x0C:
            self._store(self._advance(), data)
        elif 0x10 <= register <= 0x1C:
            self._store((self._ap[4] & ~0xF) + register - 0x10, data)
        else:
            self._ap[register] = data

    def read_ap_multiple(self, addr, count=1, now=True):
        """The same register again and again."""
        values = [self.read_ap(addr) for _ in range(count)]
        return values if now else lambda: values

    def write_ap_multiple(self, addr, values):
        """The same register again and again."""
        for value in values:
            self.write_ap(addr, value)

    def _read(self, register: int) -> int:
        if register == 0x0C:
            return self._load(self._advance())
        if 0x10 <= register <= 0x1C:
            return self._load((self._ap[4] & ~0xF) + register - 0x10)
        return {0xFC: AP_IDR, 0xF8: ROM_TABLE | 3, 0x00: self._ap.get(0, 0x2300_0052) | 0x40}.get(
            register, self._ap.get(register, 0))

    def _advance(self) -> int:
        """The address of the next transfer; CSW says how wide it is and whether the address goes on."""
        address, csw = self._ap[4], self._ap.get(0, 2)
        if csw & 0x30:
            self._ap[4] = address + (1 << (csw & 3))
        return address

    def _load(self, address: int) -> int:
        word = address & ~3
        if word == DHCSR:
            return 0x0001_0001 | (0x0002_0002 if self._halted else 0)
        return FIXED.get(word, self._memory.get(word, 0xFFFF_FFFF if word < 0x4000_0000 else 0))

    def _store(self, address: int, data: int):
        """Only the byte lanes of the transfer change."""
        word, size = address & ~3, 1 << (self._ap.get(0, 2) & 3)
        lanes = (((1 << 8 * size) - 1) << 8 * (address & 3)) & 0xFFFF_FFFF
        if word == DHCSR:
            self._halted = bool(data & 2)
        elif word not in FIXED:
            flipped = 0x100 if self._state.get("fault") == "worn" and word == 0x0800_0040 else 0
            self._memory[word] = ((self._memory.get(word, 0xFFFF_FFFF) & ~lanes) | (data & lanes)) ^ flipped
