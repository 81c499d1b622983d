"""The command ``labelspace serve``. Heavy libraries are loaded inside the function."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

from ..errors import LabelspaceError, MissingExtraError, SettingsError
from .options import Device, ModelPath, Output, Precision, Switch, print_json

logger = logging.getLogger("labelspace")

TOKEN = "LABELSPACE_TOKEN"


def serve(
    model: ModelPath,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    allow_edit: Switch = False,
    cors: Annotated[list[str] | None, Parameter(negative=())] = None,
    name: str | None = None,
    max_texts: int = 256,
    max_k: int = 200,
    max_body_mb: float = 4.0,
    batch_size: int = 128,
    queue: int = 1024,
    access_log: Switch = False,
    device: Device = "auto",
    precision: Precision = "float32",
    output: Output = Output(),
) -> None:
    """Answer over HTTP, with a page for people at /; ends on Ctrl-C or SIGTERM, when all that was taken is answered.

    Parameters
    ----------
    port
        Where to listen; 0 for any that is free.
    host
        Address or name to listen at; 0.0.0.0 for all IPv4 addresses of this machine, :: for its IPv6 ones and, where
        the system gives both, all. Anybody who reaches it can then ask.
    allow_edit
        Let documents and labels be added, renamed and removed by those who show the token: LABELSPACE_TOKEN of the
        environment, or one that is made and printed.
    cors
        Origin of pages elsewhere whose scripts may ask, such as https://app.example.org, or * for all; once for each.
    name
        What the model is called on the page and in Annif's routes; the folder's name when not given.
    max_texts
        Texts of a request.
    max_k
        Labels a text.
    max_body_mb
        Megabytes (2^20 bytes) of a request.
    batch_size
        Texts that wait and are predicted together.
    queue
        Texts that may wait; with more, requests are refused with status 429.
    access_log
        Print a line for every request; texts are never printed.
    """
    for given, value, least in (
        ("max-texts", max_texts, 1), ("max-k", max_k, 1), ("batch-size", batch_size, 1), ("queue", queue, 1)
    ):  # fmt: skip
        if value < least:
            raise SettingsError(f"--{given} must be at least {least}, got {value}")
    if not 0.001 <= max_body_mb <= 1024:
        raise SettingsError(f"--max-body-mb must be from 0.001 to 1024, got {max_body_mb:g}")
    if not 0 <= port <= 65535:
        raise SettingsError(f"--port must be from 0 to 65535, got {port}")
    _require_packages()
    import uvicorn

    from ..model.manifest import read_manifest
    from ..model.model import Model
    from ..serving.app import make_app
    from ..serving.cors import origin
    from ..serving.http import json_protocol
    from ..serving.service import Settings

    read_manifest(model.expanduser())
    called = name or re.sub(r"[^A-Za-z0-9_-]+", "-", model.expanduser().resolve().name).strip("-") or "model"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", called):
        raise SettingsError(f"--name may have letters, digits, - and _, got {called!r}")
    token, made = _token(allow_edit)
    settings = Settings(
        name=called, token=token, max_texts=max_texts, max_k=max_k, max_body=int(max_body_mb * 2**20),
        batch=batch_size, queue=queue, origins=tuple(map(origin, cors or ())),
    )  # fmt: skip
    broken: list[BaseException] = []

    def failed(error: BaseException) -> None:
        broken.append(error)
        server.should_exit = True

    app = make_app(lambda: Model.load(model, device, precision=precision), settings, failed)
    config = uvicorn.Config(
        app, log_level="warning", access_log=access_log, server_header=False, timeout_keep_alive=30, backlog=2048,
        ws="none", http=json_protocol(),
    )  # fmt: skip
    server = uvicorn.Server(config)
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    with _listening(host, port) as listeners:
        address = _address(host, listeners[0])
        if output.json:
            print_json({"url": address, "model": str(model), "name": called, "allow_edit": allow_edit})
            sys.stdout.flush()
        else:
            where = f"{address} and at all other addresses of this machine" if _all_addresses(listeners[0]) else address
            logger.warning("%s is served at %s; Ctrl-C ends it", model, where)
        if made:
            print(f"the token for changes, not shown again: {token}", file=sys.stderr, flush=True)
        with _quiet_signals():
            server.run(sockets=listeners)
    if broken:
        raise broken[0]


def _require_packages() -> None:
    import importlib.util

    for package in ("fastapi", "uvicorn", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("labelspace serve", package, "serve")


def _token(allow_edit: bool) -> tuple[str | None, bool]:
    """What must be shown for changes, and whether it was made here."""
    given = os.environ.get(TOKEN)
    if not allow_edit:
        return None, False
    if given is None:
        return secrets.token_urlsafe(24), True
    if len(given) < 8 or not re.fullmatch(r"[!-~]+", given):
        raise SettingsError(f"{TOKEN} must be at least 8 characters of plain ASCII without spaces")
    return given, False


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets that listen at one port of every address that the host has."""
    bare = host.strip().removeprefix("[").removesuffix("]")
    both = bare == "::" and socket.has_dualstack_ipv6()
    try:
        found = socket.getaddrinfo(bare or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise LabelspaceError(
            f"cannot listen at --host {host!r}: no such address or name is known here; give 127.0.0.1, 0.0.0.0 or ::, "
            "or an address of this machine"
        ) from error
    with contextlib.ExitStack() as opened:
        listeners: list[socket.socket] = []
        failed: OSError | None = None  # a name may have addresses that this machine has not: without IPv6, say
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            place = (address[0], listeners[0].getsockname()[1] if listeners else port, *address[2:])
            try:
                made = socket.create_server(place, family=family, backlog=2048, dualstack_ipv6=both)
                listeners.append(opened.enter_context(made))
            except OSError as error:
                failed = error
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    listeners.clear()
                    break
        if not listeners:
            assert failed is not None
            what = {
                errno.EADDRINUSE: "another program listens there; choose another --port, or 0 for any that is free",
                errno.EACCES: "ports below 1024 are for the administrator; choose another --port",
                errno.EADDRNOTAVAIL: "this machine does not have that address; give one that it has to --host",
            }.get(failed.errno or 0, f"{failed.strerror or failed}; choose others with --host, --port")
            raise LabelspaceError(f"cannot listen at {host or 'all addresses'}, port {port}: {what}") from failed
        yield listeners


def _all_addresses(listener: socket.socket) -> bool:
    return listener.getsockname()[0] in ("0.0.0.0", "::")


def _address(host: str, listener: socket.socket) -> str:
    """Where a browser on this machine finds the service."""
    named, port = host.strip().removeprefix("[").removesuffix("]"), listener.getsockname()[1]
    if _all_addresses(listener):
        named = "127.0.0.1" if listener.family == socket.AF_INET else "::1"
    return f"http://{f'[{named}]' if ':' in named else named}:{port}/"


@contextlib.contextmanager
def _quiet_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM, which the server handles and then raises again, end the command well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
