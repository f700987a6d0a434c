#!/usr/bin/env python3
"""Writes nf4.bin: what bitsandbytes makes of a matrix in 4-bit NF4, for tests/io/test_quant_planes.c.

    v/bin/pip install bitsandbytes==0.50.2 torch numpy
    v/bin/python make_nf4.py

Little-endian, one after the other:
    f32 [64, 256]  a matrix
    u8  [64, 256]  its numbers, 0 to 15, one a byte
    f32 [64, 4]    the largest magnitude of each block of 64
    f32 [256]      create_dynamic_map(signed=True), by which double quantisation rounds
"""
import pathlib

import bitsandbytes.functional as bnb
import numpy as np
import torch

ROWS, COLUMNS, BLOCK = 64, 256, 64

generator = np.random.Generator(np.random.Philox(4))
matrix = generator.standard_normal((ROWS, COLUMNS)).astype(np.float32)
matrix[16:32] *= generator.standard_t(2, (16, COLUMNS)).astype(np.float32)  # blocks with outliers
matrix[32:48] = matrix[32:48].astype(np.float16)
matrix *= np.exp(generator.uniform(-12, 2, (ROWS, 1))).astype(np.float32)
matrix[48:64] = np.round(matrix[48:64] / np.abs(matrix[48:64]).max() * 24) / 16  # many equal numbers, 0 too

numbers, state = bnb.quantize_4bit(torch.from_numpy(matrix), blocksize=BLOCK, quant_type="nf4")
packed = numbers.numpy().reshape(-1)
codes = np.stack([packed >> 4, packed & 15], 1).astype(np.uint8)
absmax = state.absmax.numpy()
assert codes.size == matrix.size and absmax.size == ROWS * COLUMNS // BLOCK
out = pathlib.Path(__file__).parent / "nf4.bin"
out.write_bytes(
    matrix.tobytes() + codes.tobytes() + absmax.astype(np.float32).tobytes() + bnb.create_dynamic_map().numpy().tobytes()
)
