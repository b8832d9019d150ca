"""Who watches the samplers of a thread."""

import threading

import jax
import numpy as np

from vdm_jax.stage import sampler as sampling
from vdm_jax.stage import sampler_program, watching

KEY = jax.random.key(0)


def watcher():
    return watching.Watcher(callback=lambda *_: None, preview=lambda *_: None)


def test_a_watcher_is_that_of_its_thread_and_block():
    first, second, elsewhere = watcher(), watcher(), []
    with watching.watched(first):
        with watching.watched(second):
            assert watching.current() is second
        assert watching.current() is first
        thread = threading.Thread(target=lambda: elsewhere.append(watching.current()))
        thread.start()
        thread.join()
    assert elsewhere == [None] and watching.current() is None


def test_a_sampler_keeps_the_program_that_reports_to_its_last_watcher(stage, monkeypatch):
    compiled = []

    def compile(self, callback=None, preview=None):
        compiled.append((callback, preview))
        shape = self.video_shape
        return lambda *of: (np.zeros((len(of[3]), *shape), np.uint8), np.ones(len(of[3]), bool))

    monkeypatch.setattr(sampler_program, "compile_sampler", compile)
    sampler = sampling.Sampler.from_config(stage, {}, steps=2)

    def run(**options):
        return list(sampler.stream({}, KEY, ["red left"], **options))

    one, other = watcher(), watcher()
    with watching.watched(one):
        run(), run()
        with watching.watched(other):
            run()
        own = one.callback
        run(callback=own)  # a callback of the call's own goes first
    run(), run()  # nobody watches
    expected = [(each.callback, each.preview) for each in (one, other)]
    assert compiled == [*expected, (own, None), (None, None)]
