"""Precision and optimizers of a training, and what a record says of them."""

import torch


def precision(choice: str, device: torch.device) -> torch.dtype:
    """Return the type that --precision means; auto: on CUDA bfloat16, or float16 where a GPU lacks that; else float32.

    tf32 is float32 too: see `allow_tf32`.
    """
    if choice != "auto":
        return torch.float32 if choice == "tf32" else getattr(torch, choice)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def cpu_capabilities() -> dict:
    """Which instructions this CPU has, by torch's names; {} where torch does not say."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def advise_on_precision(choice: str, device: torch.device) -> str:
    """Return what to say of a --precision on this CPU, whose default is float32 everywhere, so that figures do not
    depend on the machine: that bfloat16 or float16 is slower here, or that bfloat16 would be faster; else "".
    """
    if device.type == "cuda":
        return ""
    known = cpu_capabilities()
    wanted = {"bfloat16": ("avx512_bf16", "amx_bf16", "bf16"), "float16": ("avx512_fp16", "amx_fp16", "fp16")}
    if choice == "auto" and known.get("amx_bf16"):
        return "--precision auto is float32 on a CPU; this one has AMX, with which bfloat16 is up to twice as fast"
    names = [name for name in wanted.get(choice, ()) if name in known]
    if not names or any(known[name] for name in names):
        return ""
    return f"--precision {choice}: this CPU has no instructions for it; float32, the default, is several times as fast"


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may round the factors of float32 products to ten bits: torch's default for convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def describe_precision(precision: torch.dtype) -> dict:
    """Return what a record says of its numbers: the encoders' precision, and whether float32 was TF32."""
    return {"precision": str(precision).removeprefix("torch."), "tf32": torch.backends.cudnn.allow_tf32}


# what a run keeps of each optimizer's state, of every parameter
MOMENTA = {torch.optim.SGD: ("momentum_buffer",), torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq")}


def adamw(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the model's trained parameters; no decay of biases, norms, and what an encoder names itself, as timm's
    do with their embeddings (`no_weight_decay`).
    """
    named = {
        f"{place}.{name}".removeprefix(".")
        for place, module in model.named_modules()
        for name in getattr(module, "no_weight_decay", set)()
    }
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = {name for name, p in trained if p.ndim < 2 or name in named}
    groups = [
        {"params": [p for name, p in trained if name not in plain], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], learning_rate, fused=True)


def sgd(model: torch.nn.Module, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD over the model's trained parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, learning_rate, momentum, weight_decay=weight_decay, fused=True)  # see FiniteGuard
