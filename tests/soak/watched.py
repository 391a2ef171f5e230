"""Runs train.py in a process whose connections, reads of secret-looking variables and of credential files are noted:

    python watched.py REPORT BLOCKS FLAG…

Every module of the library is imported first. ``REPORT`` gets a JSON object: lists under ``connections``, ``files`` and
``variables``, each entry with the file of the code that asked; and ``sockets`` of the internet, open in the end, which
also tells of code that is not Python.
"""

import contextlib
import json
import os
import pathlib
import pkgutil
import re
import runpy
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|_KEY$|^AWS_|^NETRC$", re.IGNORECASE)
CREDENTIAL_FILES = re.compile(r"netrc|/\.aws/|gcloud|huggingface.*token|/\.ssh/|\.git-credentials|kaggle\.json")
found = {"connections": [], "files": [], "variables": []}


def asker():
    """The code that asked: the nearest that is not Python's own."""
    frame = sys._getframe(2)
    while frame.f_back and re.search(r"^<|lib/python3\.\d+/(?!site-packages)", frame.f_code.co_filename):
        frame = frame.f_back
    return frame.f_code.co_filename


def audit(event, args):
    """Python tells of every address looked up or connected to, and of every file opened."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.bind", "socket.sendto"):
        address = args[0] if event.startswith("socket.get") else args[1]
        if event.startswith("socket.get") or isinstance(address, tuple):  # else of this machine, with a path
            found["connections"].append([event, repr(address), asker()])
    elif event == "open" and isinstance(args[0], str) and CREDENTIAL_FILES.search(args[0]):
        found["files"].append([args[0], asker()])


def watch_variables():
    """Every way to ask for a variable ends in ``__getitem__``."""
    plain = os._Environ.__getitem__

    def noted(self, name):
        if isinstance(name, str) and SECRET.search(name):
            found["variables"].append([name, asker()])
        return plain(self, name)

    os._Environ.__getitem__ = noted


def internet_sockets():
    """Lines of the system's tables that are this process's."""
    own = set()
    for descriptor in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them is gone
            own.add(os.readlink(descriptor))
    tables = [pathlib.Path(f"/proc/self/net/{name}") for name in ("tcp", "tcp6", "udp", "udp6")]
    lines = [line for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return [line for line in lines if f"socket:[{line.split()[9]}]" in own]


if __name__ == "__main__":
    report, blocks, *flags = sys.argv[1:]
    sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).parent)]
    sys.addaudithook(audit)
    watch_variables()
    import flax_mnv2

    for module in pkgutil.walk_packages(flax_mnv2.__path__, "flax_mnv2."):
        if not module.name.endswith("__main__"):
            __import__(module.name)
    import flax_mnv2.layer_plan

    flax_mnv2.layer_plan.BLOCK_TABLE = tuple(map(tuple, json.loads(blocks)))
    sys.argv = ["train.py", *flags]
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    finally:
        found["sockets"] = internet_sockets()
        pathlib.Path(report).write_text(json.dumps(found))
