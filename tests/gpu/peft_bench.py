#!/usr/bin/env python3
"""The LoRA training step of transformers + PEFT on a GPU; a JSON line for each way.

bf16 base, SDPA attention, LoRA on all linears, fused AdamW, clipping, every position a target. The base is loaded once; the
ways are: gradient checkpointing off and on, each with adapters in f32 (PEFT's default) and in bf16. What does
not fit the card's memory gives a line with "error". --cpu tries the script on the processor.
"""

import argparse
import array
import gc
import json
import os
import statistics
import time
import warnings

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="HF folder (inputs.py)")
    parser.add_argument("--ids", required=True, help="uint16 file of rows of seq-len + 1 ids (inputs.py)")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=6, help="timed steps, after the warm-up")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--only", choices=("off", "on"), help="only without or only with gradient checkpointing")
    parser.add_argument("--cpu", action="store_true", help="try the script on the processor")
    return parser.parse_args()


def batches(args, device):
    import torch
    width = args.seq_len + 1
    ids = array.array("H")
    with open(args.ids, "rb") as file:
        ids.frombytes(file.read())
    rows = torch.tensor(ids, dtype=torch.int64).view(-1, width)
    at = 0
    while True:
        yield rows[[(at + i) % len(rows) for i in range(args.micro_batch)]].to(device)
        at += args.micro_batch


def run(args, model, device):
    """Seconds of each step, the last loss, peak bytes of torch's memory."""
    import torch
    on_gpu = device == "cuda"
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    source, seconds, value = batches(args, device), [], None
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(args.warmup + args.steps):
        rows = next(source)
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        loss = model(input_ids=rows[:, :-1], labels=rows[:, 1:], shift_labels=rows[:, 1:].contiguous(),
                     use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()  # waits for the card
        seconds.append(time.perf_counter() - start)
    return seconds, value, torch.cuda.max_memory_allocated() if on_gpu else 0


def main():
    args = parse()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import peft
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = "cpu" if args.cpu else "cuda"
    base = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16,
                                                             attn_implementation="sdpa").to(device)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=args.r, lora_alpha=2 * args.r, lora_dropout=0.0,
                             target_modules=TARGETS)
    model = peft.get_peft_model(base, config).train()  # adapters in f32
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    for adapters in ("f32", "bf16"):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32 if adapters == "f32" else torch.bfloat16)
                parameter.grad = None
        for checkpointing in ("off", "on"):
            if args.only not in (None, checkpointing):
                continue
            if checkpointing == "on":
                model.enable_input_require_grads()
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            else:
                model.gradient_checkpointing_disable()
            line = {"program": "peft", "adapters": adapters, "checkpointing": checkpointing, "versions": versions}
            try:
                seconds, loss, peak = run(args, model, device)
                line |= {"step_seconds": seconds, "median": statistics.median(seconds[args.warmup:]), "loss": loss,
                         "peak_bytes": peak}
            except torch.cuda.OutOfMemoryError:
                line["error"] = "out of memory"
            model.zero_grad()
            gc.collect()
            if not args.cpu:
                torch.cuda.empty_cache()
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
