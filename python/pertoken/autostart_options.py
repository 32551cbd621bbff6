"""What `PERTOKEN_PROFILE` says: the options of a process that is profiled without being changed.

The text is either one path, or ``key=value`` pairs with commas between them. In a value, a comma is
written ``%2C``, and a percent sign ``%25``.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pertoken.errors import PertokenError

VARIABLE = "PERTOKEN_PROFILE"
SUFFIX = ".pertoken"
DEFAULT_NAME = "pertoken-{script}-{pid}" + SUFFIX
MIN_MEMORY_BYTES = 1 << 20

_ON = frozenset({"1", "true", "yes", "on"})
_OFF = frozenset({"0", "false", "no", "off"})
_SIZE = re.compile(r"(\d+)([KMG]?)(i?B)?", re.IGNORECASE)
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class AutostartOptions:
    """How to profile a process.

    Attributes:
        output: where the profiles go: a file that ends in ``.pertoken``, else a folder. ``{pid}``
            stands for the process id, ``{script}`` for the name of the script.
        modules: which modules get spans: ``root``, ``layers``, ``all`` or a glob pattern.
        memory_limit: how much each recording may hold, in bytes.
        log_interval: seconds between lines of status; 0: none.
        spool: a folder where each recording is also left for the case that the process is killed;
            empty: nowhere.
        chrome: write a trace for Perfetto beside each profile.
        summary: print the summary at the end; of the process that is started first, not of those
            that it starts.
    """

    output: str = DEFAULT_NAME
    modules: str = "layers"
    memory_limit: int = 256 << 20
    log_interval: float = 0.0
    spool: str = ""
    chrome: bool = False
    summary: bool = False

    @classmethod
    def parse(cls, text: str) -> AutostartOptions:
        """Reads what stands in the environment.

        Raises:
            PertokenError: it cannot be understood; the message says why.
        """
        if "=" not in text:
            return cls() if text.lower() in _ON else cls(output=_path(unquote(text)))
        given: dict[str, Any] = {}
        for pair in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = pair.partition("=")
            read = _READERS.get(key.strip())
            if read is None or not equals:
                raise PertokenError(
                    f"{pair!r} is not an option; the options are {', '.join(_READERS)}, each as "
                    "key=value, with commas between them"
                )
            given[key.strip()] = read(unquote(value.strip()))
        return cls(**given)

    def text(self) -> str:
        """The same options as a text that `parse` reads; no spool is left out."""
        pairs = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default == "":
                continue
            plain = str(int(value)) if isinstance(value, bool) else str(value)
            pairs.append(f"{field.name}={quote(plain, safe='/{}*?[]:~')}")
        return ",".join(pairs)

    def resolved(self) -> AutostartOptions:
        """With full paths: a process may change its folder."""
        name = self.output
        if not name.endswith(SUFFIX):
            name = os.path.join(name, DEFAULT_NAME)
        return replace(
            self,
            output=os.path.abspath(os.path.expanduser(name)),
            spool=self.spool and os.path.abspath(os.path.expanduser(self.spool)),
        )

    def for_children(self) -> AutostartOptions:
        """What the processes get that this one starts: each writes files of its own."""
        output = self.output
        if "{pid}" not in os.path.basename(output):
            output = f"{output.removesuffix(SUFFIX)}-{{pid}}{SUFFIX}"
        return replace(self, output=output, summary=False)

    def file(self, script: str, pid: int, number: int) -> Path:
        """Where the profile of the model with this number goes, from 1, of one process."""
        name = self.output.replace("{script}", script).replace("{pid}", str(pid))
        if number > 1:
            name = f"{name.removesuffix(SUFFIX)}-model{number}{SUFFIX}"
        return Path(name)


def _path(value: str) -> str:
    if not value or "\0" in value:
        raise PertokenError("the output is empty; give a folder, or a file that ends in .pertoken")
    return value


def _folder(value: str) -> str:
    if not value or "\0" in value:
        raise PertokenError("spool is empty or holds a null character; give a folder")
    return value


def _modules(value: str) -> str:
    if not value:
        raise PertokenError("modules is empty; give root, layers, all or a glob pattern")
    return value


def memory_size(value: str) -> int:
    """Reads a number of bytes such as ``64M``.

    Raises:
        PertokenError: it is no such number, or too small.
    """
    match = _SIZE.fullmatch(value)
    size = int(match[1]) * _FACTORS[match[2].upper()] if match else 0
    if not MIN_MEMORY_BYTES <= size < 1 << 48:
        raise PertokenError(f"memory_limit={value}: give a size such as 64M or 1G, at least 1M")
    return size


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 1e9:
        raise PertokenError(f"log_interval={value}: give a number of seconds, 0 for none")
    return seconds


def _flag(value: str) -> bool:
    if value.lower() in _ON or value.lower() in _OFF:
        return value.lower() in _ON
    raise PertokenError(f"{value!r} is neither 1 nor 0")


_READERS = {
    "output": _path,
    "modules": _modules,
    "memory_limit": memory_size,
    "log_interval": _seconds,
    "spool": _folder,
    "chrome": _flag,
    "summary": _flag,
}
