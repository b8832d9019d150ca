"""A page in the browser that shows training runs while they go on.

    vdm watch RUN [RUN ...] [--port=N]

RUN is a working directory of vdm train, that of a cascade, or a folder of several. The page shows
loss, speed, samples, checkpoints, and figures of vdm evaluate --out=RUN/evaluation/NAME.json, of
several runs side by side. It looks at the files again every five seconds; a run may begin later.

It needs the extra studio (pip install '.[studio]'), no network, and it reports nothing to anyone.
Only this machine reaches it, unless --host says otherwise.
"""

from pathlib import Path

from vdm_jax.cli import common, parsing


def main(arguments: list[str]) -> int:
    parser = parsing.parser("vdm watch", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a working directory of vdm train")
    common.add_server_arguments(parser)
    options = parser.parse_args(arguments)

    from vdm_jax.studio import server, watch_page

    gradio = server.load_gradio()
    folders = [Path(run) for run in options.runs]
    page = watch_page.build(gradio, watch_page.Watched(folders))
    server.serve(gradio, page, options.host, options.port, folders)
    return 0
