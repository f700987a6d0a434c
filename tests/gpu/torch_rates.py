#!/usr/bin/env python3
"""Prints as a JSON line what the card does through torch: bf16 products of two 8192 x 8192 matrices of random numbers, in
TFLOP/s, and a copy of 1 GiB, in GB/s (bytes read and written). Medians of single calls, timed by events.

--cpu takes a small size on the processor, to try the script.
"""

import json
import statistics
import sys
import time

import torch


def seconds_on_gpu(call):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def seconds_on_cpu(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main():
    cpu = sys.argv[1:] == ["--cpu"]
    device, n, copied = ("cpu", 256, 1 << 20) if cpu else ("cuda", 8192, 1 << 30)
    timer = seconds_on_cpu if cpu else seconds_on_gpu
    torch.manual_seed(1)
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    x = torch.ones(copied // 4, device=device)
    y = torch.empty_like(x)

    def median(call):
        for _ in range(5):
            call()
        return statistics.median(timer(call) for _ in range(30))

    product = median(lambda: torch.matmul(a, b, out=c))
    copy = median(lambda: y.copy_(x))
    print(json.dumps({"program": "torch-rates", "matmul_tflops": 2e-12 * n**3 / product, "copy_gbps": 2e-9 * copied / copy,
                      "torch": torch.__version__, "device": device if cpu else torch.cuda.get_device_name()}))


if __name__ == "__main__":
    main()
