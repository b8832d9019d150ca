import pytest

from benchmarks import ours, pairs

# Operations of one clip forward and parameters of the peers, by torch's FlopCounterMode, at the
# versions of benchmarks/peers/install.py.
PEERS = {
    "video-diffusion-small": (9.61e9, 3_161_939),
    "diffusers": (41.49e9, 7_196_643),
    "make-a-video": (48.24e9, 63_125_669),
    "lumiere": (33.13e9, 27_734_042),
    "latent-unet": (1.62e9, 18_462_148),
    "latent-unet-sd15": (803.3e9, 859_520_964),
    "stable-video": (50.4e9, 8_001_536),  # with attention, which torch leaves out
}


@pytest.mark.parametrize("name", PEERS)
def test_mirrored_networks_do_as_much_work_as_their_peers(name):
    pair = pairs.PAIRS[name]
    cost = ours.make_stage(pair, ours.make_config(pair, 1, "float32")).cost()
    flops, parameters = PEERS[name]
    assert 0.9 < sum(level.flops for level in cost) / flops < 1.15
    assert 0.5 < sum(level.parameters for level in cost) / parameters < 1.15


def test_names_are_chosen_or_refused():
    assert [pair.name for pair in pairs.choose("lumiere,diffusers")] == ["lumiere", "diffusers"]
    left_out = set(pairs.PAIRS) - {pair.name for pair in pairs.choose("all")}
    assert left_out == {"latent-unet-sd15"}  # too large for most machines
    with pytest.raises(ValueError, match="imagen unknown; allowed: all, none, video-diffusion"):
        pairs.choose("lumiere,imagen")
