"""Makes `gpt_oss.npz`: the attention of gpt-oss in `transformers`, one layer with a window and one without.

python -m tests.interop.make_gpt_oss
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "gpt_oss.npz"
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
SIZES = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5}


def main() -> None:
    import torch
    from transformers import GptOssConfig
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssRotaryEmbedding

    torch.manual_seed(0)
    group = YARN | {"original_max_position_embeddings": 8}
    config = GptOssConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=32, rope_parameters=group)
    config._attn_implementation = "eager"
    x = torch.randn(2, 20, 24)
    positions = torch.arange(20)[None]
    turned = GptOssRotaryEmbedding(config)(x, positions)
    masks = (create_sliding_window_causal_mask, create_causal_mask)
    arrays = {"x": x.numpy()}
    for layer, make_mask in enumerate(masks):
        attention = GptOssAttention(config, layer)
        with torch.no_grad():
            for parameter in attention.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter))
            mask = make_mask(
                config=config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=positions
            )
            arrays[f"{layer}/output"] = attention(x, turned, mask)[0].numpy()
        arrays |= {f"{layer}/{name}": value.numpy() for name, value in attention.state_dict().items()}
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
