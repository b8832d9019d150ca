"""Records what transformers computes with T5 and BERT, for tests/models/text.

    python tests/weights/record_text.py

Needs torch and transformers. Networks are tiny and their weights random.
"""

import torch
import transformers
from recording import randomised, record, weighted


def example(vocab_size, length):
    """Tokens and a mask of three texts of different lengths. No token is 0: torch computes no
    gradient for BERT's padding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, vocab_size, (3, length), generator=generator)
    return tokens, torch.arange(length) < torch.tensor([length, length // 2, 1])[:, None]


def record_encoder(name, model, vocab_size, length):
    tokens, mask = example(vocab_size, length)
    states = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    weighted(states * mask[..., None]).backward()
    gradient = model.get_input_embeddings().weight.grad
    values = {"tokens": tokens, "mask": mask, "states": states, "gradient/words": gradient}
    record(name, model, values)


def t5(**changes):
    sizes = {"d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3}
    sizes |= {"vocab_size": 60, "feed_forward_proj": "gated-gelu"} | changes
    return randomised(transformers.T5EncoderModel(transformers.T5Config(**sizes)))


def bert():
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    sizes |= {"vocab_size": 10, "max_position_embeddings": 16, "intermediate_size": 20}
    config = transformers.BertConfig(**sizes)
    return randomised(transformers.BertModel(config, add_pooling_layer=False))


if __name__ == "__main__":
    torch.set_num_threads(1)
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 9}
    record_encoder("t5_few_buckets", t5(**buckets), 60, 24)
    # The published buckets, on texts that reach the last of them.
    wide = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 2}
    record_encoder("t5", t5(**wide), 60, 150)
    record_encoder("minilm", bert(), 10, 16)
