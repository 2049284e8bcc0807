# SPDX-License-Identifier: Apache-2.0
"""Stands in for ssh and scp: what is "there" is the folder STANDIN_HOME of this computer.

STANDIN_SSH names what goes wrong; what is printed then is what OpenSSH's client prints (readable in its sources and in
many issues). Each call is written to STANDIN_LOG.
"""

import json
import os
import shutil
import subprocess
import sys

AT = "@" * 59
SAYS = {"unknown": "ssh: Could not resolve hostname orin: Name or service not known",
        "refused": "ssh: connect to host orin port 22: Connection refused",
        "late": "ssh: connect to host orin port 22: Connection timed out",
        "denied": "me@orin: Permission denied (publickey,password).",
        "new": "No ED25519 host key is known for orin and you have requested strict checking.\n"
               "Host key verification failed.",
        "changed": f"{AT}\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n{AT}\n"
                   "IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\nHost key verification failed."}
LOST = "client_loop: send disconnect: Broken pipe"


def fail(text: str, status: int) -> None:
    print(text, file=sys.stderr)
    sys.exit(status)


def ssh(words: list[str], how: str, home: str) -> None:
    command = words[1]
    if how == "lost" and "--seconds" in command:
        print("int8: building the engine, there is none yet", file=sys.stderr)
        fail(LOST, 255)
    if how == "no-python":
        command = command.replace("/usr/bin/python3", "/usr/bin/python-that-is-not-there")
    else:
        command = command.replace("/usr/bin/python3", sys.executable + " -S")
    if how == "small" and "df -Pk" in command:
        command = command.replace("df -Pk .", "printf 'Filesystem 1024-blocks Used Available Capacity Mounted on\\n"
                                              "/dev/nvme0n1p1 60000000 59900000 90000 100%% /\\n'")
    if how in ("banner", "garbled"):
        print("Welcome to the laboratory", flush=True)
    if how == "garbled" and "--seconds" in command:
        sys.exit(0)
    sys.exit(subprocess.run(["sh", "-c", command], cwd=home).returncode)


def scp(words: list[str], how: str, home: str) -> None:
    if how == "full":
        fail('scp: write remote "leadedge-engines/x/model.int8.onnx": No space left on device', 1)
    if how == "full-sftp":
        fail('scp: write remote "leadedge-engines/x/model.int8.onnx": Failure', 1)
    if how == "lost-copy":
        fail(LOST + "\nscp: Connection closed", 255)
    *files, target = words
    for name in files:
        shutil.copy(name, os.path.join(home, target.partition(":")[2]))


def main() -> None:
    name, how, home = os.path.basename(sys.argv[0]), os.environ.get("STANDIN_SSH", ""), os.environ["STANDIN_HOME"]
    with open(os.environ["STANDIN_LOG"], "a") as log:
        log.write(json.dumps([name, *sys.argv[1:]]) + "\n")
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    if "-Oexit" in options:
        return
    if how in SAYS:
        fail(SAYS[how], 255)
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    (ssh if name == "ssh" else scp)(words, how, home)


if __name__ == "__main__":
    main()
