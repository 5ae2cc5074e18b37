# Variables, stamps and the two ways to make a file.
#
# Every artifact hangs on files only. What is not a file becomes one that changes only when its content does (`put`):
# options, the source's and the text's identity, the results version of a tool. So a rebuilt tool or a repeated command
# line reruns nothing, and a changed one reruns exactly what depends on it.

MODEL     ?= smollm2-135m
TEXT      ?= $(ROOT)/data/sample.txt
TEXT_FORM ?= file
PROTOCOL  ?= llamacpp
CHARS     ?=
WINDOWS   ?=
DEVICE    ?= cpu
COMPUTE   ?=
THREADS   ?=
OUT       ?= $(ROOT)/out
MODELS    ?= $(ROOT)/data/models
METRICS   ?= $(ROOT)/metrics.csv
export METRICS

# B in the environment means something else to the tests, so only the command line sets it.
ROOT := ..
B := $(ROOT)/build/bin

empty :=
space := $(empty) $(empty)
# For use within single quotes.
q = $(subst ','\'',$(1))

# Paths on the command line are meant from where make was called, which -C hides; PWD still tells.
START := $(or $(wildcard $(PWD)),$(CURDIR))
from_start = $(if $(filter command environment,$(firstword $(origin $(1)))),$(if $(filter /%,$($(1))),$($(1)),$(START)/$($(1))),$($(1)))
# A path to read: as it is if absolute, else from there if it exists there, else from here.
find_path = $(if $(filter /%,$(firstword $(1))),$(1),$(shell p='$(call q,$(1))'; \
    if [ -e '$(call q,$(START))'/"$$p" ]; then printf %s '$(call q,$(START))'/"$$p"; else printf %s "$$p"; fi))
override OUT := $(call from_start,OUT)
override MODELS := $(call from_start,MODELS)
override METRICS := $(call from_start,METRICS)
override B := $(call from_start,B)
$(foreach v,OUT MODELS B,$(if $(word 2,$($(v))),$(error $(v)=$($(v)): no spaces here, please)))

# put: run a command into a file that changes only when its content does. Not quiet about failure.
put = @mkdir -p $(@D); ($(1)) >'$@.tmp' || { rm -f '$@.tmp'; exit 1; }; \
      if cmp -s '$@.tmp' '$@'; then rm '$@.tmp'; else mv '$@.tmp' '$@'; fi
# json: a tool's record, there only when the tool succeeded.
json = mkdir -p '$(@D)'; rm -f '$@'; $(1) >'$@.tmp' || { rm -f '$@.tmp'; exit 1; }; mv '$@.tmp' '$@'

# tick counts stages while the rules are read, in the order in which one job alone would run them; say announces one.
COUNT :=
tick = $(eval COUNT += x)$(words $(COUNT))
say = printf '[%2d/%d] %s\n' $(1) $(words $(COUNT)) '$(call q,$(2))'

# Results version of each tool: all that artifacts know about it.
S := $(OUT)/.stamp
$(S)/%.tool: FORCE
	$(call put,v=$$('$(B)/$*' --version) || { echo "$(B)/$*: cannot run it (make builds the tools)" >&2; exit 1; }; \
	    [[ $$v =~ \(results\ ([0-9]+)\) ]] || { echo "$*: no results version in \"$$v\"" >&2; exit 1; }; \
	    echo "$${BASH_REMATCH[1]}")

# What a file or folder is, without reading it: name, size and time of its files.
identity = if [ -d '$(call q,$(1))' ]; then stat -L -c '%n %s %y' '$(call q,$(1))'/{config.json,*.safetensors,tokenizer.json} 2>/dev/null || :; \
           else stat -L -c '%n %s %y' '$(call q,$(1))'; fi

device_opts = --device '$(call q,$(DEVICE))' $(if $(COMPUTE),--compute '$(call q,$(COMPUTE))') $(if $(THREADS),-t '$(call q,$(THREADS))')
