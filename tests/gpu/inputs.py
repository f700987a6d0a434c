#!/usr/bin/env python3
"""Inputs of the GPU benchmark; only Python's own library.

    inputs.py base DIR LAYERS          a model of Llama-3-8B's shape with random bf16 weights (32 layers: 16 GB) as a
                                       Hugging Face folder without a tokenizer
    inputs.py ids DIR ROWS SEQ_LEN     DIR/ids.bin and .idx (Megatron, uint16): ROWS random documents of SEQ_LEN + 1
                                       ids, so that each row has SEQ_LEN targets

Weights are normal with standard deviation 0.02, taken from one table of a million at changing places; norms are 1. A folder
that is already there and whole is left as it is. LORASHARD_BENCH_SHAPE=tiny makes a model of a few kilobytes for trying the scripts.
"""

import array
import json
import os
import random
import struct
import sys

SHAPE = {"d": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128, "vocab": 128256}
if os.environ.get("LORASHARD_BENCH_SHAPE") == "tiny":
    SHAPE = {"d": 64, "ffn": 172, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 512}
TABLE = (1 << 20) + 7  # no multiple of a row's length


def tensors(n_layers):
    """(name, shape) in the file's order."""
    d, ffn = SHAPE["d"], SHAPE["ffn"]
    q, kv = SHAPE["heads"] * SHAPE["head_dim"], SHAPE["kv_heads"] * SHAPE["head_dim"]
    yield "model.embed_tokens.weight", (SHAPE["vocab"], d)
    for layer in range(n_layers):
        p = f"model.layers.{layer}."
        yield p + "input_layernorm.weight", (d,)
        yield p + "post_attention_layernorm.weight", (d,)
        yield p + "self_attn.q_proj.weight", (q, d)
        yield p + "self_attn.k_proj.weight", (kv, d)
        yield p + "self_attn.v_proj.weight", (kv, d)
        yield p + "self_attn.o_proj.weight", (d, q)
        yield p + "mlp.gate_proj.weight", (ffn, d)
        yield p + "mlp.up_proj.weight", (ffn, d)
        yield p + "mlp.down_proj.weight", (d, ffn)
    yield "model.norm.weight", (d,)
    yield "lm_head.weight", (SHAPE["vocab"], d)


def size(shape):
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def config(n_layers):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": SHAPE["d"],
            "intermediate_size": SHAPE["ffn"], "num_hidden_layers": n_layers, "num_attention_heads": SHAPE["heads"],
            "num_key_value_heads": SHAPE["kv_heads"], "head_dim": SHAPE["head_dim"], "vocab_size": SHAPE["vocab"],
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": None,
            "max_position_embeddings": 8192, "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
            "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
            "use_cache": False}


def write_base(folder, n_layers):
    done = f"{folder}/config.json"  # written last
    if os.path.exists(done):
        with open(done) as file:
            if json.load(file) == config(n_layers):
                return
        os.remove(done)
    os.makedirs(folder, exist_ok=True)
    rng = random.Random(1)
    floats = array.array("f", (rng.gauss(0, 0.02) for _ in range(TABLE)))
    halves = array.array("H", floats.tobytes())[1::2]  # bf16: the upper half of each f32, cut
    table = memoryview((halves + halves).tobytes())
    ones = struct.pack("<H", 0x3f80)
    header, at = {}, 0
    for name, shape in tensors(n_layers):
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * size(shape)]}
        at += 2 * size(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(f"{folder}/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in tensors(n_layers):
            if len(shape) == 1:
                file.write(ones * shape[0])
                continue
            start, left = 2 * rng.randrange(TABLE), 2 * size(shape)
            while left > 0:
                part = table[start:start + min(left, 2 * TABLE)]
                file.write(part)
                left -= len(part)
    with open(done, "w") as file:
        json.dump(config(n_layers), file)


def write_ids(folder, rows, seq_len):
    os.makedirs(folder, exist_ok=True)
    rng = random.Random(2)
    top = min(SHAPE["vocab"], 65536)
    with open(f"{folder}/ids.bin", "wb") as file:
        array.array("H", (rng.randrange(top) for _ in range(rows * (seq_len + 1)))).tofile(file)
    with open(f"{folder}/ids.idx", "wb") as index:
        index.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, rows, rows + 1))
        array.array("i", [seq_len + 1] * rows).tofile(index)
        array.array("q", [2 * (seq_len + 1) * row for row in range(rows)]).tofile(index)
        array.array("q", range(rows + 1)).tofile(index)


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "base":
        write_base(sys.argv[2], int(sys.argv[3]))
    elif len(sys.argv) == 5 and sys.argv[1] == "ids":
        write_ids(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
