#!/usr/bin/env python3
"""Opens qquant's folders with the libraries they are meant for and compares weights bit for bit.

By hand, in a venv with torch 2.15.0, transformers 5.23.0, compressed-tensors 0.20.0, bitsandbytes 0.50.2 (CPU suffices):
  check_portable.py [--bin build] [--only SUBSTRING] MODEL_FOLDER...
For every format and mix: qquant writes the folder, tests/tools/dequant.c says what our reader makes of it, and
  default     from_pretrained(folder), one forward pass, then the modules' weights
  dequantize  the same with CompressedTensorsConfig(dequantize=True)
must do what results.portable says: "yes": names and bits right by default; "dequantize": right only so; "no": not right by default
(a packed embedding may still open with dequantize=True: "no" promises nothing).
Unpacked formats of a single scheme are also quantized by the library itself and the stored bytes compared.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, logging, warnings
os.environ.setdefault("BNB_CUDA_VERSION", ""); os.environ["TRANSFORMERS_VERBOSITY"] = "error"; os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore")
import torch, transformers, compressed_tensors, bitsandbytes as bnb
import bitsandbytes.functional as F
from safetensors import safe_open
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
transformers.utils.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar()
logging.disable(logging.WARNING)
from loguru import logger; logger.remove()

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--bin", default="build"); ap.add_argument("--only", default=""); ap.add_argument("models", nargs="+")
o = ap.parse_args()
FORMATS = ["f32", "bf16", "f16", "int8-row", "int4-row", "int4-row-sym", "int4-g32", "int4-g32-sym", "int4-g64", "int4-g64-sym",
           "int4-g128", "int4-g128-sym", "int4-g256", "int4-strided128", "nf4", "nf4-dq", "fp4"]
MIXES = ["int4-g32-sym+mse", "int4-g32+mse", "nf4+mse", "nf4-dq+mse", "int8-row+mse",
         "int4-g32-sym+head=int8-row", "int4-g32-sym+head=int4-g32-sym", "int4-g32+head=int4-g32", "int4-g32+head=int8-row",
         "int8-row+embed=int8-row+head=int8-row", "int8-row+embed=int8-row", "int4-g32-sym+head=f16", "int4-g32-sym+head=bf16", "nf4+head=int8-row", "nf4+head=nf4"]
RULES = {
    "mix: down int8, layer 0 attention plain, rest g32-sym": {"default": "int4-g32-sym", "rules": [
        {"match": "*down_proj", "format": "int8-row"}, {"match": "model.layers.0.self_attn.*", "format": "PLAIN"}]},
    "mix: layer 0 plain, rest g32": {"default": "int4-g32", "rules": [{"match": "model.layers.0.*", "format": "PLAIN"}]},
    "mix: down int8, rest g32 asymmetric": {"default": "int4-g32", "rules": [{"match": "*down_proj", "format": "int8-row"}]},
    "mix: layer 1 nf4-dq, layer 0 up plain, rest fp4": {"default": "fp4", "rules": [
        {"match": "model.layers.1.*", "format": "nf4-dq"}, {"match": "model.layers.0.mlp.up_proj", "format": "PLAIN"}]},
    "mix: families": {"default": "nf4", "rules": [{"match": "*mlp*", "format": "int4-g32"}, {"match": "*v_proj", "format": "int4-strided128"}]},
}

def run(*cmd):
    p = subprocess.run(cmd, capture_output=True, text=True)
    if p.returncode: raise SystemExit(f"{' '.join(cmd)}: {p.stderr}")
    return p.stdout

def ours(folder, tmp):
    out = os.path.join(tmp, "ours.safetensors"); run(f"{o.bin}/tests/dequant", folder, out)
    with safe_open(out, "pt") as f: return {k: f.get_tensor(k) for k in f.keys()}

def weight_of(m):
    w = m.weight
    if isinstance(w, bnb.nn.Params4bit): return F.dequantize_4bit(w.data, w.quant_state)
    return w.data

def same(a, b):  # bits, whatever the dtype
    if a.dtype != b.dtype or a.shape != b.shape: return False
    v = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return torch.equal(a.contiguous().view(v), b.contiguous().view(v))

def load(folder, want, **kw):
    """'ok', or what is wrong"""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True, **kw)
        bad = [k for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(k)]
        if bad: return f"{bad[0]}: {sorted(info[bad[0]])[:2]}"
        mods = dict(model.named_modules()); wrong = []
        # before the forward pass, which on some CPUs packs 4-bit weights anew
        before = {n: weight_of(m) for n, m in mods.items() if isinstance(getattr(m, "weight", None), bnb.nn.Params4bit)}
        with torch.no_grad(): logits = model(torch.tensor([[1, 2, 3, 4]])).logits
        if not torch.isfinite(logits).all(): return "logits are not finite"
        for name, w in want.items():
            n = name[:-len(".weight")]
            if not same(before[n] if n in before else weight_of(mods[n]), w): wrong.append(name)
        return f"{len(wrong)} of {len(want)} weights differ ({wrong[0]})" if wrong else "ok"
    except Exception as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0][:40] if str(e) else ''}"

def library_bytes(src, folder, results):
    """Quantize with the library, compare stored bytes; returns (tensors compared, tensors different)."""
    with safe_open(os.path.join(src, "model.safetensors"), "pt") as s, safe_open(os.path.join(folder, "model.safetensors"), "pt") as d:
        cfg = json.load(open(os.path.join(folder, "config.json")))["quantization_config"]; n = bad = 0
        dt = getattr(torch, json.load(open(os.path.join(folder, "config.json")))["dtype"])
        for t in results["tensors"]:
            name = t["name"]; w = s.get_tensor(name + ".weight").to(dt)
            if cfg["quant_method"] == "compressed-tensors":
                wa = {k: v for k, v in cfg["config_groups"]["group_0"]["weights"].items() if k in ("num_bits", "type", "symmetric", "strategy", "group_size")}
                a = QuantizationArgs(**wa); g = a.group_size or w.shape[1]
                if w.shape[1] % g: return None
                v = w.float().view(w.shape[0], -1, g); sc, z = calculate_qparams(v.amin(-1), v.amax(-1), a)
                sd = {"weight": w, "weight_scale": sc.to(dt)}
                if not a.symmetric: sd["weight_zero_point"] = z.to(torch.int8)
                p = BaseCompressor.get_value_from_registry("pack-quantized").compress(sd, QuantizationScheme(targets=["Linear"], weights=a))
                parts = {f"{name}.{k}": p[k] for k in ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point") if k in p}
            else:
                dq = cfg["bnb_4bit_use_double_quant"]
                q, st = F.quantize_4bit(w, blocksize=64, quant_type=cfg["bnb_4bit_quant_type"], compress_statistics=dq)
                parts = {f"{name}.weight": q, f"{name}.weight.quant_map": st.code}
                if not dq: parts[f"{name}.weight.absmax"] = st.absmax
                if cfg["bnb_4bit_quant_type"] == "fp4":  # two zeros
                    z = lambda b: torch.where((b >> 4) == 8, b & 15, b)
                    zz = lambda b: torch.where((z(b) & 15) == 8, z(b) & 240, z(b))
                    a, b = zz(d.get_tensor(f"{name}.weight")), zz(parts.pop(f"{name}.weight")); n += 1; bad += not torch.equal(a, b)
            for k, v in parts.items():
                n += 1; x = d.get_tensor(k); bad += not (x.shape == v.shape and torch.equal(x.contiguous().view(-1).view(torch.uint8), v.contiguous().view(-1).view(torch.uint8)))
        return n, bad

failed = 0
for src in o.models:
    print(f"\n## {src}   (torch {torch.__version__}, transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}, bitsandbytes {bnb.__version__})")
    plain_dtype = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}[json.load(open(src + "/config.json"))["dtype"]]
    jobs = [(f, ["-f", f]) for f in FORMATS + MIXES] + [(k, v) for k, v in RULES.items()]
    for label, how in jobs:
        if o.only not in label: continue
        with tempfile.TemporaryDirectory() as tmp:
            if isinstance(how, dict):
                p = os.path.join(tmp, "recipe.json"); open(p, "w").write(json.dumps(how).replace("PLAIN", plain_dtype)); how = ["-r", p]
            folder = os.path.join(tmp, "q")
            rec = json.loads(run(f"{o.bin}/bin/qquant", "-q", src, *how, "-o", folder)); res = rec["results"]; port = res["portable"]["transformers"]
            want = ours(folder, tmp)
            plain = load(folder, want)
            ct = json.load(open(folder + "/config.json")).get("quantization_config", {}).get("quant_method") == "compressed-tensors"
            deq = load(folder, want, quantization_config=CompressedTensorsConfig(dequantize=True)) if ct else "-"
            good = {"yes": plain == "ok", "dequantize": plain != "ok" and deq == "ok", "no": plain != "ok"}[port]
            lib = ""
            if label in FORMATS and ct | label.startswith(("nf4", "fp4")):
                r = library_bytes(src, folder, res)
                if r: lib = f"library bytes {r[0] - r[1]}/{r[0]}"; good &= r[1] == 0
            failed += not good
            print(f"{'ok  ' if good else 'BAD '} {label:54} says {port:10} default: {plain:12} dequantize: {deq:8} {lib}", flush=True)
print(f"\n{failed} wrong"); sys.exit(failed != 0)
