"""Pages in a browser: `vdm studio`, where videos are made, and `vdm watch`, where runs are watched.

What the pages do is in modules that know no page: `requests`, `jobs`, `models`, `inputs`, `runs`,
`charts` and `markup`. Only `server` imports Gradio, for `studio_page` and `watch_page`.
"""
