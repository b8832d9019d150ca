"""Pages in a browser: `vdm studio`, where videos are made, and `vdm watch`, where runs are watched.

`requests`, `jobs`, `models`, `inputs` and `runs` are what the pages do, without a page; `studio_page`,
`watch_page` and `server` are the only modules that import Gradio.
"""
