"""Decoding speed of transformers on a folder, in f16 or in nf4 by bitsandbytes, for tests/gpu/run (part peers).
usage: peers.py FOLDER f16|nf4 TOKENS
Greedy, one sequence, a prompt of 16 tokens; the median of three, TOKENS more tokens over the time they take. A record on
stdout."""
import json
import sys
import time

import torch
import transformers

folder, kind, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = {"torch_dtype": torch.float16, "device_map": "cuda"}
if kind == "nf4":
    options["quantization_config"] = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
prompt = torch.arange(1, 17, device="cuda")[None]


def seconds(count):
    """Of a prompt and `count` tokens."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=count,
                   max_new_tokens=count, pad_token_id=0)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


with torch.inference_mode():
    seconds(n)
    speeds = sorted(n / (seconds(n + 4) - seconds(4)) for _ in range(3))
print(json.dumps({"tool": "peers.py", "params": {"folder": folder, "format": kind, "tokens": n, "torch": torch.__version__,
                                                 "transformers": transformers.__version__},
                  "results": {"decode_tps": speeds[1]}}, separators=(",", ":")))
