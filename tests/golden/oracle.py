"""Tiny models made and run by transformers and PEFT: logits, gradients and training curves in float64."""

import json
import math
import os
import re
import zlib

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from cases import LAYERS, MODULES, PATHS

DTYPES = dict(f32=torch.float32, f16=torch.float16, bf16=torch.bfloat16)
ROWS, SEQ_LEN, STEPS = 3, 24, 20
ADAMW = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
CLIP_NORM = 1.0


class Float64(TorchFunctionMode):
    """transformers computes norms, softmax and rotary angles in float32 whatever the model's type. In this mode each
    request for float32 is one for float64, so that a float64 model is float64 throughout."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def generator(case_name, purpose):
    return np.random.Generator(np.random.Philox(zlib.crc32(f"{case_name}/{purpose}".encode())))


def normal(rng, shape, std):
    # Rounded to float32 by numpy, as Float64 above would keep torch from doing it.
    return torch.from_numpy((rng.standard_normal(tuple(shape)) * std).astype(np.float32))


def random_value(rng, name, parameter, tied, conv1d):
    """Weights that keep the residual stream near 1 and give logits a spread of 1 to 3."""
    shape = parameter.shape
    if name.endswith("bias"):
        return normal(rng, shape, 0.1)
    if len(shape) == 1:
        return 1 + normal(rng, shape, 0.2)
    if re.search(r"wpe|embed_positions", name):
        return normal(rng, shape, 0.3)
    if re.search(r"lm_head|embed_out", name):
        return normal(rng, shape, 2 / math.sqrt(shape[1]))
    if re.search(r"wte|embed_tokens|word_embeddings|embed_in", name):
        return normal(rng, shape, 2 / math.sqrt(shape[1]) if tied else 0.8)
    fan_in = shape[0] if conv1d and re.search(r"c_attn|c_proj|c_fc", name) else shape[1]
    return normal(rng, shape, 1 / math.sqrt(fan_in))


def make_base(case_name, case, folder):
    """A random model of the case as an HF folder."""
    config = AutoConfig.for_model(case.family, **case.config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    rng = generator(case_name, "weights")
    tied = config.tie_word_embeddings
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(random_value(rng, name, parameter, tied, case.family == "gpt2"))
    model = model.to(DTYPES[case.dtype])
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    limit = size + 1 if case.shards == 1 else int(size / case.shards * 1.15)
    model.save_pretrained(folder, max_shard_size=limit)
    if os.path.exists(f"{folder}/generation_config.json"):
        os.remove(f"{folder}/generation_config.json")


def load_base(folder, dtype):
    """The stored weights, widened."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(dtype)


class SeparatePairs(torch.nn.Module):
    """A fused q, k, v linear with a low-rank pair for each part: base(x) + parts in the fused layout."""

    def __init__(self, base, pairs, n_heads, per_head):
        super().__init__()
        self.base, self.n_heads, self.per_head = base, n_heads, per_head
        self.scales = {module: scale for module, (_, _, scale) in pairs.items()}
        self.A = torch.nn.ParameterDict({m: torch.nn.Parameter(A) for m, (A, _, _) in pairs.items()})
        self.B = torch.nn.ParameterDict({m: torch.nn.Parameter(B) for m, (_, B, _) in pairs.items()})

    def forward(self, x):
        parts = [self.scales[m] * (x @ self.A[m].T) @ self.B[m].T for m in "qkv"]
        if self.per_head:  # [.., H, 3, head_dim]
            heads = [p.reshape(*p.shape[:-1], self.n_heads, 1, -1) for p in parts]
            delta = torch.cat(heads, dim=-2).flatten(-3)
        else:
            delta = torch.cat(parts, dim=-1)
        return self.base(x) + delta


def rank_alpha(case, module):
    return case.overrides.get(module, (case.r, case.alpha))


def scale_of(case, module):
    r, alpha = rank_alpha(case, module)
    return alpha / (math.sqrt(r) if case.rslora else r)


def peft_config(case, paths):
    """PEFT's own adapters: everything but the parts of a fused linear."""
    targets = [p for m, p in paths.items() if m in case.targets or (m == "fused" and case.peft_fused)]
    if not case.peft_fused:
        targets = [p for p in targets if p != paths.get("fused")]
    pattern = {re.escape(paths[m]): rank_alpha(case, m) for m in case.overrides}
    return LoraConfig(task_type="CAUSAL_LM", r=case.r, lora_alpha=case.alpha, target_modules=targets, bias="none",
                      lora_dropout=0.0, use_rslora=case.rslora, fan_in_fan_out=case.family == "gpt2",
                      rank_pattern={k: v[0] for k, v in pattern.items()},
                      alpha_pattern={k: v[1] for k, v in pattern.items()})


class Adapted:
    """A base with its adapters. factors: {'layers.<l>.<module>.A' or '.B': Parameter}, in HF row order."""

    def __init__(self, case_name, case, folder, dtype):
        self.case, self.factors = case, {}
        base = load_base(folder, dtype)
        config = base.config
        paths, layers = PATHS[case.family], LAYERS.get(case.family, "model.layers")
        self.model = get_peft_model(base, peft_config(case, paths))
        rng = generator(case_name, "adapters")
        blocks = self.model.base_model.model.get_submodule(layers)
        for index, block in enumerate(blocks):
            if "fused" in paths and not case.peft_fused:
                self.add_separate(rng, index, block, paths["fused"], config)
            for module in ("fused",) if case.peft_fused else MODULES:
                if module in paths and (case.peft_fused or module in case.targets):
                    self.take_peft(rng, index, module, block.get_submodule(paths[module]))
        self.model.to(dtype).eval()
        self.parameters = [p for _, p in sorted(self.factors.items())]
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        assert trainable == sum(p.numel() for p in self.parameters)

    def random_pair(self, rng, r, n_in, n_out):
        return normal(rng, (r, n_in), 1 / math.sqrt(n_in)), normal(rng, (n_out, r), 0.1)

    def add_separate(self, rng, index, block, path, config):
        parent, name = path.rsplit(".", 1)
        base, d = block.get_submodule(path), config.hidden_size
        pairs = {m: (*self.random_pair(rng, rank_alpha(self.case, m)[0], d, d), scale_of(self.case, m)) for m in "qkv"}
        fused = SeparatePairs(base, pairs, config.num_attention_heads, self.case.family != "gpt2")
        setattr(block.get_submodule(parent), name, fused)
        for m in "qkv":
            self.factors[f"layers.{index}.{m}.A"] = fused.A[m]
            self.factors[f"layers.{index}.{m}.B"] = fused.B[m]

    def take_peft(self, rng, index, module, layer):
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        r, n_in, n_out = A.shape[0], A.shape[1], B.shape[0]
        a, b = self.random_pair(rng, r, n_in, n_out)
        with torch.no_grad():
            A.copy_(a), B.copy_(b)
        if module != "fused":
            assert r == rank_alpha(self.case, module)[0]
            assert math.isclose(layer.scaling["default"], scale_of(self.case, module))
        self.factors[f"layers.{index}.{module}.A"] = A
        self.factors[f"layers.{index}.{module}.B"] = B

    def logits(self, ids):
        return self.model(input_ids=ids, use_cache=False).logits

    def loss(self, ids, labels):
        """Sum over the counted targets of all rows, divided by their number."""
        logits = self.logits(ids)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100), logits

    def peft_keys(self):
        return {k: list(v.shape) for k, v in sorted(get_peft_model_state_dict(self.model).items())}


def batch(case_name, vocab):
    """ids [ROWS, SEQ_LEN]; labels[b][t] is the token to predict at position t (already shifted), or -100."""
    rng = generator(case_name, "batch")
    ids = torch.from_numpy(rng.integers(0, vocab, (ROWS, SEQ_LEN)))
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    labels[1, :9] = -100   # a prompt
    labels[2, 17:] = -100  # padding
    labels[2, 3] = -100    # a hole
    return ids, labels


def first_step(adapted, ids, labels):
    loss, logits = adapted.loss(ids, labels)
    grads = torch.autograd.grad(loss, adapted.parameters)
    return loss.item(), logits.detach(), dict(zip(sorted(adapted.factors), grads))


def curve(adapted, ids, labels):
    """Losses before each update and gradient norms before clipping."""
    optimizer = torch.optim.AdamW(adapted.parameters, **ADAMW)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = adapted.loss(ids, labels)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(adapted.parameters, CLIP_NORM).item())
        losses.append(loss.item())
        optimizer.step()
    return losses, norms


def check_slope(adapted, ids, labels, grads):
    """The loss's slope along a random direction by central differences: it agrees to 1e-6 only if the whole forward
    pass is float64 (float32 anywhere would leave noise of about 0.1)."""
    rng = np.random.default_rng(0)
    step, expected = 1e-6, 0.0
    directions = [torch.from_numpy(rng.standard_normal(p.shape)) for p in adapted.parameters]
    for (_, g), v in zip(sorted(grads.items()), directions):
        expected += (g * v).sum().item()
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, v in zip(adapted.parameters, directions):
                p.add_(v, alpha=sign * step)
            values.append(adapted.loss(ids, labels)[0].item())
    slope = (values[0] - values[1]) / (2 * step)
    # The difference formula's own error is far below this; a larger step can cross a kink of relu.
    assert abs(slope - expected) < 1e-6 * max(1, abs(expected)), (slope, expected)
    return abs(slope - expected)


def compare(a, b):
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


def write_json(path, value):
    """Indented, but each list of plain values on one line."""
    text = json.dumps(value, indent=1)
    text = re.sub(r"\[[^][{}]*\]", lambda m: re.sub(r"\s+", " ", m.group()), text)
    with open(path, "w") as file:
        file.write(text + "\n")
