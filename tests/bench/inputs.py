#!/usr/bin/env python3
"""Inputs of the benchmark.

    inputs.py ids DIR VOCABULARY ROWS SEQ_LEN   DIR/ids.bin and .idx (Megatron, uint16): ROWS random documents of
                                                SEQ_LEN + 1 ids, so that each row has SEQ_LEN targets
    inputs.py gpt2 DIR TOKENIZER.json           a random GPT-2 (124M) as HF folders DIR-f32 and DIR-bf16
"""

import os
import shutil
import struct
import sys

import numpy as np


def write_ids(folder, n_vocab, rows, seq_len):
    os.makedirs(folder, exist_ok=True)
    ids = np.random.default_rng(1).integers(0, n_vocab, (rows, seq_len + 1)).astype("<u2")
    ids.tofile(f"{folder}/ids.bin")
    with open(f"{folder}/ids.idx", "wb") as index:
        index.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, rows, rows + 1))
        np.full(rows, seq_len + 1, "<i4").tofile(index)
        (np.arange(rows, dtype="<i8") * 2 * (seq_len + 1)).tofile(index)
        np.arange(rows + 1, dtype="<i8").tofile(index)


def write_gpt2(folder, tokenizer):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config())
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        model.to(dtype).save_pretrained(f"{folder}-{name}")
        shutil.copy(tokenizer, f"{folder}-{name}/tokenizer.json")


def main():
    if len(sys.argv) == 6 and sys.argv[1] == "ids":
        write_ids(sys.argv[2], *map(int, sys.argv[3:]))
    elif len(sys.argv) == 4 and sys.argv[1] == "gpt2":
        write_gpt2(sys.argv[2], sys.argv[3])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
