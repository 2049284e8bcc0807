# SPDX-License-Identifier: Apache-2.0
"""Put a firmware image on a board: find the board, refuse the wrong chip, write, verify.

A board of boards.toml says in `loaders` how it can be written, the usual way first: uf2 (a volume to copy to), pyocd
(a debug probe), stm32loader (the serial boot loader in the chip's ROM), esptool.
A loader is a module: `missing() -> str | None`, `places(board) -> list[str]` where the board is found by itself,
`takes(port)` whether that is what the user meant with --port, `hint(board)` what to do so that the board is found,
`write(image, board, place) -> dict`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from targets.flash_tools import DeviceError
from train import say
from train.say import MissingError, UserError

LOADERS = {"uf2": "targets.flash_uf2", "pyocd": "targets.flash_probe", "stm32loader": "targets.flash_stm32",
           "esptool": "targets.flash_esp"}


def flash(image: str | Path, board: dict, port: str | None = None) -> dict:
    """Write `image` (an ELF) to the board; {"loader", "place", "bytes", "verified"}.

    port: a serial port, the id of a debug probe or the folder of a UF2 volume; None: the only one that fits.
    """
    image = Path(image)
    if not image.is_file():
        raise UserError(f"{image} is not there", "a linked image",
                        "python targets/deploy.py --run R --target mcu --board B")
    names = board.get("loaders", [])
    if not names:
        raise UserError(f"{board['name']} is an emulated machine; there is nothing to flash", "a board with a loader",
                        "--emulate instead of --flash")
    loaders = {name: importlib.import_module(LOADERS[name]) for name in names}
    name, place = _meant(loaders, board, port) if port else _found(loaders, board)
    say.info(f"writing {image.name} to {board['name']} on {place} ({name})")
    done = {"loader": name, "place": place} | loaders[name].write(image, board, place)
    say.info(f"{done['bytes']} bytes on {place}; {done['verified']}")
    return done


def _meant(loaders: dict, board: dict, port: str) -> tuple[str, str]:
    """(loader, place) that --port names."""
    taking = [name for name, loader in loaders.items() if loader.takes(port)]
    if not taking:
        raise UserError(f"{board['name']} is not written through {port}",
                        "; ".join(loader.hint(board) for loader in loaders.values()),
                        "leave --port out, or name another")
    _installed(loaders[taking[0]])
    return taking[0], port


def _found(loaders: dict, board: dict) -> tuple[str, str]:
    """(loader, place) of the only board that fits."""
    hints = []
    for name, loader in loaders.items():
        if absent := loader.missing():
            hints.append(absent)
            continue
        places = loader.places(board)
        if len(places) > 1:
            raise UserError(f"{len(places)} devices may be the {board['name']}", ", ".join(places),
                            f"name one: --port {places[0]}")
        if places:
            return name, places[0]
        hints.append(loader.hint(board))
    raise DeviceError(f"no {board['name']} is connected", "; or: ".join(hints),
                      "connect it as said above, then run this again (--port names a port that was not recognised)")


def _installed(loader) -> None:
    if absent := loader.missing():
        raise MissingError(absent, "the loader of this board", 'pip install -e ".[mcu]"')
