"""Serves a page of Gradio on this machine: nothing is sent elsewhere, and nothing is fetched."""

import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdm_jax.studio import paint

PORTS = range(7860, 7960)
MOST_BYTES = 200_000_000  # of an upload
# On a page as narrow as a telephone, columns go below each other.
_CSS = """
.pending { opacity: 1 !important; }  /* a page that is looked at again does not fade */
.gradio-container { max-width: 1180px !important; margin: auto; }
.clips { display: flex; flex-wrap: wrap; gap: 12px; }
.clips figure { margin: 0; flex: 1 1 180px; max-width: 384px; }
.clips img, .clips video { width: 100%; image-rendering: pixelated; border-radius: 6px; }
.clips figcaption { font-size: 12px; overflow-wrap: anywhere; }
.bar { height: 8px; border-radius: 4px; background: #8884; overflow: hidden; margin: 8px 0; }
.bar div { height: 100%; background: #2563eb; transition: width .3s; }
.command textarea { font-family: ui-monospace, monospace; font-size: 13px; }
.clips + p code { overflow-wrap: anywhere; font-size: 12px; }
.failed { color: #b91c1c; font-weight: 600; overflow-wrap: anywhere; }
.charts { display: flex; flex-wrap: wrap; gap: 12px; }
.charts > div { flex: 1 1 330px; min-width: 0; }
.charts svg { width: 100%; height: auto; border-radius: 6px; }
.runs { display: flex; flex-wrap: wrap; gap: 24px; }
.runs > section { flex: 1 1 330px; min-width: 0; }
.runs table { border-collapse: collapse; font-size: 14px; }
.runs table, .runs tr { border: none !important; }
.runs td, .runs th { padding: 3px 16px 3px 0 !important; text-align: left; border: none !important;
  border-bottom: 1px solid #8883 !important; overflow-wrap: anywhere; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 6px; }
.note { color: #b45309; overflow-wrap: anywhere; }
"""


class PageError(ValueError):
    """A page that cannot be served; the message says what to do."""


def load_gradio() -> Any:
    """The module gradio, which then reports nothing. Raises PageError where it is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise PageError(
            "the page needs Gradio, which is not installed: pip install '.[studio]'"
        ) from error
    return gradio


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server of that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def blocks(gradio: Any, title: str) -> Any:
    """An empty page, without a report to anyone."""
    return gradio.Blocks(title=title, analytics_enabled=False)


class Server:
    """A server of one page, which listens from the beginning and answers within `run`.

    Gradio's own `launch` first asks itself whether it answers within three seconds, and gives up on
    a machine that is busy.

    Args:
      page: a Gradio app.
      host, port: to listen at; port None = the first free one of `PORTS`.
      folders: whose files the page may show.

    Attributes:
      address: of the page.

    Raises PageError where the port is taken or the host is not this machine's.
    """

    def __init__(
        self, gradio: Any, page: Any, *, host: str, port: int | None, folders: Sequence[Path]
    ):
        import fastapi
        import uvicorn

        self._socket = _listening(host, port)
        port = self._socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{port}"
        # The letters of the system: no font is fetched.
        theme = gradio.themes.Default(
            primary_hue="blue",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        )
        app = gradio.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            page,
            path="/",
            server_name=host,
            server_port=port,
            allowed_paths=[str(folder.absolute()) for folder in folders],
            max_file_size=MOST_BYTES,
            show_error=True,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            run_history=False,
            theme=theme,
            css=_CSS + paint.CSS,
            head=paint.SCRIPT,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        )

    def run(self) -> None:
        """Serves the page until `stop`, or until the process is interrupted."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Ends `run`, of another thread."""
        self._server.should_exit = True


def serve(gradio: Any, page: Any, host: str, port: int | None, folders: Sequence[Path]) -> None:
    """Prints the page's address and serves it until the process is interrupted.

    Arguments and errors are those of `Server`.
    """
    server = Server(gradio, page, host=host, port=port, folders=folders)
    print(f"{server.address}  (Ctrl-C ends it)", flush=True)
    server.run()


def _listening(host: str, port: int | None) -> socket.socket:
    """A socket that listens. Raises PageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in PORTS if port is None else [port]:
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, candidate))
        except (OSError, OverflowError) as error:
            found.close()
            reason = error
        else:
            return found
    which = f"--port={port}" if port is not None else f"ports {PORTS[0]} to {PORTS[-1]}"
    raise PageError(f"--host={host}, {which}: nothing can listen there: {reason}; give another")
