"""A page in the browser that makes videos: choose a model, write a prompt, press Make.

    vdm studio [--model=MODEL] [--out=DIR] [--port=N]

The page samples, animates a picture, extends, interpolates, inpaints what is painted, restyles,
loops and inverts videos, and follows the edges of others. It shows current estimates and the time
left, and the command line of its settings: the page runs that command. Each job's files go to
OUT/NUMBER. Jobs of several visitors wait for each other.

It needs the extra studio (pip install '.[studio]'), no network, and it reports nothing to anyone.
Only this machine reaches it, unless --host says otherwise; then visitors can choose the models of
the list alone.
"""

from vdm_jax.cli import common, outputs, parsing


def main(arguments: list[str]) -> int:
    parser = parsing.parser("vdm studio", __doc__)
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="the model that is chosen when the page is opened (default: the fastest that ships)",
    )
    common.add_device_argument(parser)
    parser.add_argument("--out", default="studio", metavar="OUT", help="default studio/")
    common.add_server_arguments(parser)
    options = parser.parse_args(arguments)

    from vdm_jax.studio import jobs, models, server, studio_page

    gradio = server.load_gradio()
    outputs.check_folder(options.out, "--out")
    names = models.names()
    if options.model:
        models.read(options.model)  # refuses what makes no videos
        names = [options.model, *(name for name in names if name != options.model)]
    common.setup(options.device)
    runner = jobs.Runner(options.out)
    local = server.is_local(options.host)
    studio = studio_page.Studio(runner, names, any_model=local, device=options.device)
    page = studio_page.build(gradio, studio)
    server.serve(gradio, page, options.host, options.port, [runner.out])
    return 0
