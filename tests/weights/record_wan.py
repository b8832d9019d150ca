"""Records what the published networks, samplers and pipeline of Wan, and the networks of Latte and
DiT, compute, for `test_causal_autoencoder.py`, `test_video_transformer.py`, `test_latte.py`,
`test_dit.py`, `test_umt5.py`, `test_flow_scheduler.py` and `test_video_dit.py`.

    PYTHON -m tests.weights.record_wan

PYTHON has torch, diffusers, transformers and safetensors. Weights are drawn (`drawn_weights.py`).
"""

import json
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import safetensors.numpy
import tokenizers
import torch
import transformers

from tests.weights import drawn_weights

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = f"diffusers {diffusers.__version__}, transformers {transformers.__version__}"
AUTOENCODER = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [1.5, 0.8, 2.0, 1.0],
}
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
LATTE = {
    "sample_size": 8,
    "num_layers": 2,
    "patch_size": 2,
    "attention_head_dim": 4,
    "num_attention_heads": 2,
    "caption_channels": 8,
    "in_channels": 4,
    "cross_attention_dim": 8,
    "out_channels": 8,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "video_length": 3,
}
LATTE_GRADIENTS = (
    "pos_embed.proj.weight",
    "transformer_blocks.0.attn2.to_k.weight",
    "transformer_blocks.1.scale_shift_table",
    "temporal_transformer_blocks.0.attn1.to_q.bias",
    "temporal_transformer_blocks.1.ff.net.2.weight",
    "scale_shift_table",
)
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "num_embeds_ada_norm": 8,
    "patch_size": 2,
    "sample_size": 6,
}
DIT_GRADIENTS = (
    "pos_embed.proj.weight",
    "transformer_blocks.0.attn1.to_q.bias",
    "transformer_blocks.1.norm1.linear.weight",
    "transformer_blocks.1.ff.net.2.weight",
    "proj_out_1.weight",
    "proj_out_2.weight",
)
UMT5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
# Of weights: decoded values of which few are beyond [-1, 1], and log-variances within their limits.
FACTORS = {"decoder.conv_out.": 2.0}
GRADIENTS = (
    "encoder.conv_in.weight",
    "encoder.down_blocks.3.time_conv.weight",
    "encoder.mid_block.attentions.0.to_qkv.weight",
    "decoder.up_blocks.0.upsamplers.0.time_conv.weight",
    "decoder.up_blocks.1.resnets.0.norm1.gamma",
    "decoder.up_blocks.2.upsamplers.0.resample.1.bias",
)
TRANSFORMER_GRADIENTS = (
    "patch_embedding.weight",
    "condition_embedder.time_proj.weight",
    "condition_embedder.text_embedder.linear_1.weight",
    "blocks.0.attn1.norm_q.weight",
    "blocks.0.attn2.to_k.weight",
    "blocks.1.scale_shift_table",
    "blocks.1.norm2.bias",
    "blocks.1.ffn.net.2.weight",
    "scale_shift_table",
)
PROMPT, NEGATIVE, STEPS, GUIDANCE, FRAMES, SIDE = "a cat runs", "dull", 4, 5.0, 5, 32


def drawn(network, factors=None):
    """The network with drawn weights."""
    # T5's table of words has two names, of which files hold the other.
    shapes = {k: v.shape for k, v in network.state_dict().items() if "embed_tokens" not in k}
    tensors = drawn_weights.draw_all(shapes, factors)
    tensors = {key: torch.from_numpy(value) for key, value in tensors.items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    assert not unexpected and all("embed_tokens" in key for key in missing)
    return network.eval()


def save(name, network, found, factors=None):
    """One file: inputs and results, and in its metadata configuration, shapes and factors."""
    arrays = {k: np.ascontiguousarray(v.detach().numpy()) for k, v in found.items()}
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        config = json.loads(Path(folder, "config.json").read_text())
        file = next(Path(folder).glob("*.safetensors"))
        with safetensors.safe_open(file, framework="numpy") as tensors:
            names = list(tensors.keys())
            shapes = {key: tensors.get_slice(key).get_shape() for key in names}
    metadata = {
        "config": json.dumps(config),
        "shapes": json.dumps(shapes),
        "factors": json.dumps(factors or {}),
        "versions": VERSIONS,
    }
    path = GOLDEN / f"{name}.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata)
    print(path.name, path.stat().st_size, {key: value.shape for key, value in arrays.items()})
    assert path.stat().st_size <= 200_000


def autoencoder():
    network = drawn(diffusers.AutoencoderKLWan(**AUTOENCODER), FACTORS)
    rng = np.random.default_rng(0)
    clip = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 9, 16, 24)).astype(np.float32))
    clip.requires_grad_()
    posterior = network.encode(clip).latent_dist
    decoded = network.decode(posterior.mean).sample
    ((decoded**2).mean() + posterior.logvar.mean()).backward()
    found = {"clip": clip, "mean": posterior.mean, "log_variance": posterior.logvar}
    found |= {"decoded": decoded, "gradient/clip": clip.grad}
    named = dict(network.named_parameters())
    found |= {f"gradient/{key}": named[key].grad for key in GRADIENTS}
    save("wan_autoencoder", network, found, FACTORS)


def transformer():
    network = drawn(diffusers.WanTransformer3DModel(**TRANSFORMER))
    rng = np.random.default_rng(0)

    def normal(*shape):
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    z, text = normal(2, 4, 3, 4, 6).requires_grad_(), normal(2, 5, 16)
    timestep = torch.tensor([987, 37])
    output = network(z, timestep, text).sample
    output.square().mean().backward()
    found = {"z": z, "text": text, "timestep": timestep, "output": output, "gradient/z": z.grad}
    named = dict(network.named_parameters())
    found |= {f"gradient/{key}": named[key].grad for key in TRANSFORMER_GRADIENTS}
    save("wan_transformer", network, found)


def latte():
    network = drawn(diffusers.LatteTransformer3DModel(**LATTE))
    rng = np.random.default_rng(0)

    def normal(*shape):
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    z, text = normal(2, 4, 3, 8, 8).requires_grad_(), normal(2, 5, 8)
    timestep = torch.tensor([987, 37])
    output = network(z, timestep, text).sample
    output.square().mean().backward()
    found = {"z": z, "text": text, "timestep": timestep, "output": output, "gradient/z": z.grad}
    named = dict(network.named_parameters())
    found |= {f"gradient/{key}": named[key].grad for key in LATTE_GRADIENTS}
    save("latte", network, found)


def dit():
    network = drawn(diffusers.DiTTransformer2DModel(**DIT))
    # Every block holds a copy of the embeddings of time and class.
    for block in network.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(2, 4, 6, 6)).astype(np.float32)).requires_grad_()
    timestep, label = torch.tensor([987, 37]), torch.tensor([3, 8])  # 8: without a class
    output = network(z, timestep=timestep, class_labels=label).sample
    output.square().mean().backward()
    found = {"z": z, "timestep": timestep, "label": label, "output": output, "gradient/z": z.grad}
    named = dict(network.named_parameters())
    found |= {f"gradient/{key}": named[key].grad for key in DIT_GRADIENTS}
    save("dit", network, found)


def text_encoder():
    config = transformers.UMT5Config(**UMT5, feed_forward_proj="gated-gelu")
    return drawn(transformers.UMT5EncoderModel(config))


def umt5():
    network, rng = text_encoder(), np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(2, 40, (2, 12)))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    states = network(tokens, mask).last_hidden_state
    (states * mask[..., None]).square().mean().backward()
    bias = network.encoder.block[1].layer[0].SelfAttention.relative_attention_bias.weight
    found = {"tokens": tokens, "mask": mask, "states": states, "gradient/bias": bias.grad}
    save("umt5", network, found)


def tokenizer():
    """A unigram model of single letters, with T5's special pieces."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((one, -2.0) for one in letters)]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    model.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def pipeline():
    return diffusers.WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(),
        vae=drawn(diffusers.AutoencoderKLWan(**AUTOENCODER), FACTORS),
        transformer=drawn(diffusers.WanTransformer3DModel(**TRANSFORMER)),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def schedulers():
    """Times and timesteps of the published samplers, NAME_SHIFT_STEPS/sigmas and /timesteps."""
    arrays = {}
    for shift in (1.0, 3.0, 5.0, 8.0, 12.0):
        for steps in (1, 4, 20, 50, 100):
            unipc = diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
            )
            euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
            for name, scheduler in (("unipc", unipc), ("flow_euler", euler)):
                scheduler.set_timesteps(steps)
                case = f"{name}_{shift:g}_{steps}"
                arrays[f"{case}/sigmas"] = scheduler.sigmas.numpy()
                arrays[f"{case}/timesteps"] = scheduler.timesteps.numpy().astype(np.float32)
    path = GOLDEN / "flow_schedulers.safetensors"
    safetensors.numpy.save_file(arrays, path, {"versions": VERSIONS})
    print(path.name, path.stat().st_size)
    assert path.stat().st_size <= 200_000


def record_pipeline():
    pipe, latents = pipeline(), []

    def keep(pipe, step, timestep, values):
        latents.append(values["latents"].numpy().copy())
        return values

    shape = (1, 4, 1 + (FRAMES - 1) // 4, SIDE // 8, SIDE // 8)
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def run(pipe):
        latents.clear()
        video = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            height=SIDE,
            width=SIDE,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=torch.from_numpy(noise),
            output_type="np",
            callback_on_step_end=keep,
            max_sequence_length=16,
        ).frames
        return np.ascontiguousarray(video), np.stack(latents)

    video, steps = run(pipe)
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            name = str(path.relative_to(folder))
            if path.suffix in (".json", ".txt"):
                files[name] = path.read_text()
            elif path.suffix == ".safetensors":
                with safetensors.safe_open(path, framework="numpy") as file:
                    names = list(file.keys())
                    shapes = {name: file.get_slice(name).get_shape() for name in names}
                files[name] = json.dumps(shapes)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    _, euler = run(pipe)
    arrays = {"noise": noise, "latents": steps, "video": video, "euler": euler}
    metadata = {"files": json.dumps(files), "factors": json.dumps(FACTORS), "versions": VERSIONS}
    path = GOLDEN / "wan_pipeline.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata)
    print(path.name, path.stat().st_size, {key: value.shape for key, value in arrays.items()})
    assert path.stat().st_size <= 200_000


if __name__ == "__main__":
    torch.set_num_threads(1)
    autoencoder()
    transformer()
    latte()
    dit()
    umt5()
    schedulers()
    record_pipeline()
