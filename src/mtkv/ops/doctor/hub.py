"""The hub or its mirror: whether it answers, and whether gated things may be fetched with the token that is here.

With HF_HUB_OFFLINE=1 the network is not used; else at most two short requests per gated thing that is not here yet.
"""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from mtkv.ops.doctor.assets import HUB, wanted
from mtkv.ops.doctor.checks import DoctorContext, Finding, Level, check

TIMEOUT = 3.0


@check("licences")
def licences(patient: DoctorContext) -> Iterator[Finding]:
    """Gated models and data sets that are still to be fetched: is there a token, and has its owner accepted the licence?"""
    gated = [thing for thing in wanted(patient) if thing.gated and not thing.here]
    there = token()
    for thing in gated:
        level: Level = "error" if thing.needed else "warning"
        if there is None:
            fix = f"accept the licence at {thing.page}, then `hf auth login` (or set HF_TOKEN)"
            yield Finding(level, f"{thing.name} is gated, and there is no token of the hub", fix)
        elif not offline() and (code := answer(f"/api/{thing.kind}/{thing.name}/auth-check", there)) in (401, 403):
            why = "does not know this token" if code == 401 else "has not let this token's owner in"
            yield Finding(
                level,
                f"{thing.name}: the hub {why}",
                f"accept the licence at {thing.page} with the account of the token",
            )
        else:
            yield Finding("ok", f"{thing.name} is gated; there is a token")
    if not gated:
        yield Finding("ok", "nothing gated is to be fetched")


@check("hub")
def hub(patient: DoctorContext) -> Iterator[Finding]:
    """Whether the hub, or the mirror that HF_ENDPOINT names, answers; asked only when something is to be fetched."""
    missing = [thing for thing in wanted(patient) if not thing.here]
    if not missing:
        yield Finding("ok", "not needed: everything is here")
    elif offline():
        message = "HF_HUB_OFFLINE is set, so the hub is not asked"
        yield Finding(
            "note",
            message,
            "`snakemake assets` fetches nevertheless, where there is network; unset it to check the network here",
        )
    elif (code := answer("/", None)) is None:
        fix = (
            "fetch on a machine with network; behind a firewall name a mirror in HF_ENDPOINT or a proxy in HTTPS_PROXY"
        )
        yield Finding("warning", f"{endpoint()} does not answer within {TIMEOUT:g} s", fix)
    elif code >= 500:
        yield Finding(
            "warning", f"{endpoint()} answers with {code}", "try again later, or another mirror in HF_ENDPOINT"
        )
    else:
        yield Finding("ok", f"{endpoint()} answers")


def token() -> str | None:
    """The hub's token, by huggingface_hub's rules: HF_TOKEN, then the file of HF_TOKEN_PATH or HF_HOME."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    ).expanduser()
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return os.environ[name].strip()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def offline() -> bool:
    """Whether huggingface_hub is told to stay off the network."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def endpoint() -> str:
    """The address of the hub or its mirror."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def answer(path: str, bearer: str | None, timeout: float = TIMEOUT) -> int | None:
    """The HTTP status of a path of the hub; None without an answer in time, also when it is the name lookup that hangs."""
    found: list[int] = []
    thread = threading.Thread(target=_ask, args=(f"{endpoint()}{path}", bearer, timeout, found), daemon=True)
    thread.start()
    thread.join(timeout + 0.5)
    return found[0] if found else None


def _ask(url: str, bearer: str | None, timeout: float, found: list[int]) -> None:
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer}"} if bearer else {})
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            found.append(reply.status)
    except urllib.error.HTTPError as error:
        found.append(error.code)
    except (OSError, ValueError):
        return
