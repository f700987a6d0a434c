#!/usr/bin/env python3
"""One LoRA training run with transformers and PEFT; prints a JSON line.

--default is what a user gets who sets nothing. --tuned is the best we know of for this machine without another
compiler or model code: two threads that do not spin, a heap that is kept and on huge pages, fused AdamW, and for bf16
adapters in bf16 too. Every position is a target in both. start_to_first_step_seconds counts from the start of the
process, imports included, to the end of the first step.
"""

import argparse
import os
import sys

TUNED = {
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
TARGETS = {
    ("llama", "q,v"): ["q_proj", "v_proj"],
    ("llama", "all"): ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ("gpt2", "q,v"): ["c_attn"],  # PEFT cannot adapt a part of a fused linear
    ("gpt2", "all"): ["c_attn", "c_proj", "c_fc"],
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="HF folder")
    parser.add_argument("--ids", help="uint16 file of rows of seq-len + 1 ids (inputs.py); random ids without it")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--targets", choices=("q,v", "all"), default="q,v")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8, help="timed steps, after the warm-up")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--attn", choices=("sdpa", "eager"), help="default: the library's choice; tuned: sdpa")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--default", action="store_true", help="the opposite of --tuned, and the default")
    return parser.parse_args()


def seconds_since_start():
    with open("/proc/self/stat") as file:
        started = int(file.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    with open("/proc/uptime") as file:
        return float(file.read().split()[0]) - started


def load(args):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    if args.tuned:
        torch.set_num_threads(2)
        torch.set_num_interop_threads(1)
    attention = args.attn or ("sdpa" if args.tuned else None)
    more = {"attn_implementation": attention} if attention else {}
    dtype = torch.float32 if args.dtype == "f32" else torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, **more)
    family = base.config.model_type
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if getattr(base.config, name, 0):
            base = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, resid_pdrop=0.0, embd_pdrop=0.0,
                                                        attn_pdrop=0.0, **more)
            break
    config = LoraConfig(task_type="CAUSAL_LM", r=args.r, lora_alpha=args.alpha, lora_dropout=0.0,
                        target_modules=TARGETS[family, args.targets], fan_in_fan_out=family == "gpt2")
    model = get_peft_model(base, config, autocast_adapter_dtype=not (args.tuned and args.dtype == "bf16"))
    return model.train()


def batches(args, n_vocab):
    """Rows of seq_len + 1 ids, endlessly."""
    import numpy as np
    import torch
    if args.ids:
        rows = np.fromfile(args.ids, "<u2").reshape(-1, args.seq_len + 1)
    else:
        rows = np.random.default_rng(1).integers(0, n_vocab, (16 * args.micro_batch, args.seq_len + 1))
    at = 0
    while True:
        yield torch.from_numpy(rows[[(at + i) % len(rows) for i in range(args.micro_batch)]].astype("int64"))
        at += args.micro_batch


def train(args):
    import time
    import torch
    model = load(args)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True if args.tuned else None)
    source, seconds, first = batches(args, model.config.vocab_size), [], None
    for _ in range(args.warmup + args.steps):
        start = time.perf_counter()
        rows = next(source)
        loss = model(input_ids=rows[:, :-1], labels=rows[:, 1:], shift_labels=rows[:, 1:].contiguous(),
                     use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        seconds.append(time.perf_counter() - start)
        first = first or seconds_since_start()
    return seconds, first, value, sum(p.numel() for p in parameters), model.config._attn_implementation


def main():
    args = parse()
    if args.tuned and any(os.environ.get(k) != v for k, v in TUNED.items()):
        os.execve(sys.executable, [sys.executable] + sys.argv, os.environ | TUNED)  # the process's start stays
    import json
    import resource
    import statistics
    import warnings
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    seconds, first, loss, trainable, attention = train(args)
    timed = seconds[args.warmup:]
    print(json.dumps({
        "program": "peft-tuned" if args.tuned else "peft-default",
        "tokens_per_second": args.micro_batch * args.seq_len / statistics.median(timed),
        "step_seconds": seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "start_to_first_step_seconds": first,
        "loss": loss,
        "trainable": trainable,
        "settings": vars(args) | {"attention": attention, "threads": torch.get_num_threads(),
                                  "environment": {k: os.environ[k] for k in TUNED if k in os.environ}},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }))


if __name__ == "__main__":
    main()
