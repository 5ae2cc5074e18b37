#!/usr/bin/env python3
"""tiny_more.json: logits of the tiny models of further architectures. Needs torch, transformers.
Usage: make_tiny_more.py OUT.json FOLDER...   (folders written by build/tests/mkmodel KIND FOLDER; named after their kind)"""
import json, os, sys, torch, transformers
from transformers import AutoModelForCausalLM
torch.set_grad_enabled(False)
ids = [(7 * i * i + 13 * i + 5) % 256 for i in range(24)]
out = dict(source=f"transformers {transformers.__version__}, torch {torch.__version__}",
           how="make_tiny_more.py: AutoModelForCausalLM.from_pretrained(folder, dtype=float32, attn eager), one call on the whole sequence",
           token_ids=ids, models={})
for d in sys.argv[2:]:
    m = AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32, attn_implementation="eager").eval()
    lg = m(torch.tensor([ids]), use_cache=False).logits[0].double()
    lp = torch.log_softmax(lg, -1)
    t = [lp[i, ids[i + 1]].item() for i in range(23)]
    out["models"][os.path.basename(d.rstrip("/"))] = dict(architecture=type(m).__name__, logits_last=[float("%.9g" % v) for v in lg[-1].tolist()],
        argmax=lg.argmax(-1).tolist(), target_logprob=[float("%.9g" % v) for v in t], mean_nll=-sum(t) / 23)
json.dump(out, open(sys.argv[1], "w"), separators=(",", ":"))
