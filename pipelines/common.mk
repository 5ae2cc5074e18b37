# Variables, stamps, and the two ways in which a rule makes a file.
#
# Artifacts depend on files only. What is not a file becomes one that changes only when its content does (`put`):
# options, the identity of the source and of the text, the results version of a tool. So a rebuilt tool or a repeated
# command line reruns nothing, and whatever changed reruns exactly what depends on it.

# Variables are set on the command line; the environment is not looked at.
ROOT := ..
MODEL := smollm2-135m
TEXT := $(ROOT)/data/sample.txt
TEXT_FORM := file
PROTOCOL := llamacpp
CHARS :=
WINDOWS :=
DEVICE := cpu
COMPUTE :=
THREADS :=
BUDGET := 5.0
OUT := $(ROOT)/out
MODELS := $(ROOT)/models
METRICS := $(ROOT)/metrics.csv
# The folder of the tools (tests put a wrapper there).
BIN := $(ROOT)/build/bin

# For use between single quotes.
q = $(subst ','\'',$(1))

# Paths on the command line start from where make was called, which -C hides but PWD still tells.
START := $(or $(PWD),$(CURDIR))
given = $(filter command,$(firstword $(origin $(1))))
from_start = $(if $(call given,$(1)),$(if $(filter /%,$($(1))),,$(START)/))$($(1))
$(foreach v,OUT MODELS METRICS BIN,$(eval override $(v) := $(call from_start,$(v))))
$(foreach v,OUT MODELS BIN,$(if $(shell [[ '$(call q,$($(v)))' =~ ^[A-Za-z0-9._/+@,-]+$$ ]] || echo bad), \
    $(error $(v)=$($(v)): letters, digits and ._/+@,- were expected in this path)))
# A path to read: from there, or else from the project's root.
find_path = $(shell p='$(call q,$(1))'; for d in $(if $(filter /%,$(1)),'','$(call q,$(START))/' '$(ROOT)/'); do \
    if [ -e "$$d$$p" ]; then printf %s "$$d$$p"; break; fi; done)
export METRICS

# put: the output of a command in a file that is touched only when it differs.
put = @mkdir -p '$(@D)'; { $(1); } > '$@.tmp'; cmp -s '$@.tmp' '$@' && rm '$@.tmp' || mv '$@.tmp' '$@'
# json: a tool's record, there only when the tool succeeded. A temporary name of its own for each run, because a tool
# outlives a make that was killed, and may still be writing when the next one starts.
json = rm -f '$@' '$@'.*.tmp; $(BIN)/$(1) > '$@'.$$$$.tmp && mv '$@'.$$$$.tmp '$@'

# tick: numbers the stages while rules are read, in the order in which one job alone runs them. say: announces one.
STAGES :=
tick = $(eval STAGES += x)$(words $(STAGES))
say = printf '[%$(if $(word 10,$(STAGES)),2)d/%d] %s\n' $(1) $(words $(STAGES)) '$(call q,$(2))'
# Progress bars only where they cannot run into each other: on a terminal, one job at a time.
TTY := $(shell [ -t 2 ] && echo yes)
quiet = $(if $(TTY),$(if $(filter -j%,$(MAKEFLAGS)),-q),-q)

# Results version of a tool: all that artifacts know about it.
S := $(OUT)/.stamp
$(S)/%.tool: FORCE | $(BIN)/qload
	$(call put,v=$$($(BIN)/$* --version) || { echo '$(BIN)/$*: does not run (make builds the tools)' >&2; exit 1; }; \
	    [[ $$v =~ \(results\ ([0-9]+)\) ]] || { echo "$*: no results version in \"$$v\"" >&2; exit 1; }; \
	    echo "$${BASH_REMATCH[1]}")
.PRECIOUS: $(S)/%.tool
# The tools, if there are none yet. Nothing is rebuilt here: that is what make at the project's root does.
ifneq ($(BIN),$(ROOT)/build/bin)
  $(if $(wildcard $(BIN)/qload),,$(error BIN=$(BIN): no tools there))
endif
$(BIN)/qload:
	@MAKEFLAGS= $(MAKE) --no-print-directory -C $(ROOT) all

# What a file or folder is, without reading it: names, sizes and times of the files that matter.
identity = (p='$(call q,$(1))'; if [ -d "$$p" ]; then cd "$$p"; shopt -s nullglob; \
    stat -L -c '%n %s %y' -- *.json *.safetensors; else stat -L -c '%s %y' -- "$$p"; fi)
