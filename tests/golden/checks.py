"""Comparisons of a built lorashard with transformers: exported adapters, and a real model from its GGUF file."""

import json
import os

import torch
from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from oracle import Float64

TEXT_TOKENS = 256  # of each text


def logprobs(model, ids):
    """[None, log p(ids[1] | ids[0]), ...] in float64 from the model's logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    values = torch.log_softmax(logits, -1)
    return [None] + [values[t, ids[t + 1]].item() for t in range(len(ids) - 1)]


def check_keys(model, adapter):
    """PEFT loads non-strictly: a missing or unknown key would go unnoticed."""
    wanted = {k: tuple(v.shape) for k, v in get_peft_model_state_dict(model).items()}
    with safe_open(f"{adapter}/adapter_model.safetensors", "pt") as file:
        found = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}
    wrong = [k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k)]
    if wrong:
        raise SystemExit("keys or shapes differ from PEFT's: " + ", ".join(sorted(wrong)[:8]))
    return len(found)


def check_export(base, adapter, scores, tolerance):
    """Largest difference between PEFT's log-probabilities and those of `lorashard score`; exits 1 above tolerance."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    with open(scores) as file:
        rows = json.load(file)
    rows = rows if isinstance(rows, list) else [rows]
    before = [logprobs(plain, row["ids"]) for row in rows]
    model = PeftModel.from_pretrained(plain, adapter, config=PeftConfig.from_pretrained(adapter)).eval()
    n_keys = check_keys(model, adapter)
    largest = effect = 0.0
    for row, base_values in zip(rows, before):
        for ours, theirs, unadapted in zip(row["logprobs"][1:], logprobs(model, row["ids"])[1:], base_values[1:]):
            largest = max(largest, abs(ours - theirs))
            effect = max(effect, abs(theirs - unadapted))
    print(f"{n_keys} keys; largest difference of a log-probability {largest:.3e}; "
          f"largest effect of the adapter {effect:.3e}")
    if not largest <= tolerance or effect == 0:
        raise SystemExit(1)


def load_gguf(path):
    """Tokenizer and model as transformers expands them; the model copied, as the loaded one can be neither stored nor
    widened."""
    folder, name = os.path.split(os.path.abspath(path))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config = AutoConfig.for_model(loaded.config.model_type, **{
        k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "model_type")})
    return tokenizer, config, loaded.state_dict()


def from_weights(config, weights, dtype):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    model.load_state_dict(weights)
    return model.eval()


def score_texts(gguf, texts, hf_folder):
    """Score the first TEXT_TOKENS tokens of each file in float64; optionally keep HF folders."""
    tokenizer, config, weights = load_gguf(gguf)
    rows, error = [], 0.0
    with Float64():  # rotary frequencies too
        exact = from_weights(config, weights, torch.float64)
    single = from_weights(config, weights, torch.float32)
    for path in texts:
        with open(path) as file:
            text = file.read(8 * TEXT_TOKENS)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:TEXT_TOKENS]
        with Float64():
            values = logprobs(exact, ids)
        rows.append(dict(text=tokenizer.decode(ids), ids=ids, logprobs=values))
        error = max([error] + [abs(a - b) for a, b in zip(values[1:], logprobs(single, ids)[1:])])
        print(f"{path}: {len(ids)} tokens, mean log-probability {sum(values[1:]) / (len(ids) - 1):.4f}")
    print(f"largest error of float32: {error:.1e}")
    if hf_folder:
        for name, dtype in (("hf-f32", torch.float32), ("hf-bf16", torch.bfloat16)):
            single.to(dtype).save_pretrained(f"{hf_folder}/{name}")
            tokenizer.save_pretrained(f"{hf_folder}/{name}")
    return dict(model=os.path.basename(gguf), single_precision_error=error, rows=rows)
