# gen2: one model in many formats, and a report.
#   OUT/<model>/load.json                 what the source is (qload)
#   OUT/<model>/f16/model/                the base all rows are made of: a link if the source is f16, else made by qload
#   OUT/<model>/<recipe>/model/           made by qquant; quant.json is written last and stands for the folder
#   OUT/<model>/<recipe>/{quant,load,ppl,bench,say}.json   say: the sentence for PROMPT
#   OUT/<model>/gen2/                     report.md, report.csv, plots; report.json stands for them

FORMATS ?= f16 int8-row int4-row int4-strided128 int4-g128 int4-g64 int4-g32 int4-g64-sym int4-g32-sym+mse nf4 nf4-dq fp4 \
           int4-g64+head=int8-row
PROMPT ?= The three primary colours are
PROMPT_TOKENS ?= 256
GEN ?= 64
SAY ?= 40
TRIALS ?= 3
WARMUP ?= 1

# Make reads "a=b: c" as a variable's definition, unless the sign is hidden in a variable while the line is read.
E := =
esc = $(subst =,$$(E),$(1))

RECIPES := $(strip $(FORMATS))
ifneq ($(words $(RECIPES)),$(words $(sort $(RECIPES))))
$(error FORMATS names a recipe twice)
endif
ifneq ($(findstring /,$(RECIPES))$(findstring ',$(RECIPES))$(findstring %,$(RECIPES))$(findstring :,$(RECIPES)),)
$(error FORMATS=$(FORMATS): names of formats or recipes were expected)
endif

.PHONY: gen2 smoke

# ---- stamps ----

$(M)/.stamp/source: FORCE | $(SRC_READY)
	$(call put,$(call identity,$(SRC)))
$(M)/.stamp/ppl: FORCE | $(TEXT_READY)
	$(call put,[ -e '$(call q,$(TEXT_PATH))' ] || { echo 'TEXT=$(call q,$(TEXT)): no such file' >&2; exit 1; }; \
	    $(call identity,$(TEXT_PATH)); \
	    printf '%s\n' '$(call q,$(TEXT_FORM))' '$(call q,$(PROTOCOL))' 'chars $(call q,$(CHARS))' 'windows $(call q,$(WINDOWS))' \
	        '$(call q,$(DEVICE))' 'compute $(call q,$(COMPUTE))')
$(M)/.stamp/bench: FORCE
	$(call put,printf '%s\n' '$(call q,$(DEVICE))' 'compute $(call q,$(COMPUTE))' 'threads $(call q,$(THREADS))' \
	    '$(PROMPT_TOKENS) $(GEN) $(TRIALS) $(WARMUP)')
$(M)/.stamp/say: FORCE
	$(call put,printf '%s\n' '$(call q,$(DEVICE))' 'compute $(call q,$(COMPUTE))' '$(call q,$(PROMPT))' '$(SAY)')
$(M)/.stamp/gen2: FORCE
	$(call put,printf '%s\n' '$(call q,$(RECIPES))' '$(if $(SAVE_EVAL_RESULTS),$(call q,$(METRICS)))')

# ---- the source and the f16 base ----

load_n := $(tick)
$(M)/load.json: $(M)/.stamp/source $(S)/qload.tool
	@$(call say,$(load_n),qload: checking $(SRC))
	@$(call json,'$(B)/qload' -q '$(call q,$(SRC))')

# An f16 folder is linked; anything else becomes one. (Norms may be f32 there: they are below 1 % of the bytes.)
define base_rule
base_n := $(tick)
$(M)/f16/quant.json: $(M)/load.json $(S)/qload.tool $(S)/qquant.tool
	@$$(call say,$$(base_n),f16: the base of all formats)
	@mkdir -p '$$(@D)'; rm -rf '$$@' '$$(@D)'/model.part-* '$$(@D)'/model.old-*; if [ -L '$$(@D)/model' ]; then rm '$$(@D)/model'; fi; \
	if [ -d '$$(call q,$$(SRC))' ] && jq -e '.results | .quantization == null and (.dtypes.F16 // 0) > 0.99 * .weights_bytes' \
	    $(M)/load.json >/dev/null; \
	then rm -rf '$$(@D)/model'; ln -s "$$$$(realpath '$$(call q,$$(SRC))')" '$$(@D)/model'; \
	else '$(B)/qload' -q '$$(call q,$$(SRC))' --dtype f16 -o '$$(@D)/model' >/dev/null; fi
	@$$(call json,'$(B)/qquant' -q '$$(@D)/model' -f f16 --plan)
endef

# ---- a recipe: $(1) its name, $(2) the same with signs of equality hidden ----

recipe_opts = $(if $(wildcard recipes/$(1).json),-r 'recipes/$(1).json',-f '$(1)')

define quant_rule
$(M)/$(2)/quant.json: $(M)/f16/quant.json $(call esc,$(wildcard recipes/$(1).json)) $(S)/qquant.tool
	@$$(call say,$(tick),$(1): quantizing)
	@rm -rf '$$@' '$$(@D)'/model.part-* '$$(@D)'/model.old-*
	@$$(call json,'$(B)/qquant' -q $(M)/f16/model $(call recipe_opts,$(1)) -o '$$(@D)/model' $$(if $$(THREADS),-t '$$(call q,$$(THREADS))'))
endef

define ppl_rule
$(M)/$(2)/load.json: $(M)/$(2)/quant.json $(S)/qload.tool
	@$$(call say,$(tick),$(1): checking what was written)
	@$$(call json,'$(B)/qload' -q '$$(@D)/model' --tensors)
$(M)/$(2)/ppl.json: $(M)/$(2)/quant.json $(M)/f16/quant.json $(M)/.stamp/ppl $(S)/qppl.tool
	@$$(call say,$(tick),$(1): perplexity$(if $(filter-out f16,$(1)), against f16))
	@$$(call json,'$(B)/qppl' -q '$$(@D)/model' --text '$$(call q,$$(TEXT_PATH))' --text-form '$$(call q,$$(TEXT_FORM))' \
	    --protocol '$$(call q,$$(PROTOCOL))' $$(if $$(CHARS),--chars '$$(call q,$$(CHARS))') \
	    $$(if $$(WINDOWS),--max-windows '$$(call q,$$(WINDOWS))') $$(device_opts) --nll '$$(@D)/ppl.nll' \
	    $(if $(filter-out f16,$(1)),--ref $(M)/f16/model --ref-cache $(M)/f16/ref.states))
endef

# Speed is measured when nothing else runs: after all perplexities, one format after another, whatever -j says.
last_bench :=
define bench_rule
$(M)/$(2)/bench.json: $(M)/$(2)/quant.json $(M)/.stamp/bench $(S)/qbench.tool | $$(PPLS) $(last_bench)
	@$$(call say,$(tick),$(1): speed)
	@$$(call json,'$(B)/qbench' -q '$$(@D)/model' --prompt-tokens $$(PROMPT_TOKENS) --gen $$(GEN) --trials $$(TRIALS) \
	    --warmup $$(WARMUP) $$(device_opts))
$(M)/$(2)/say.json: $(M)/$(2)/quant.json $(M)/.stamp/say $(S)/qbench.tool | $(M)/$(2)/bench.json
	@$$(call say,$(tick),$(1): a sentence)
	@$$(call json,'$(B)/qbench' -q '$$(@D)/model' --prompt '$$(call q,$$(PROMPT))' --gen $$(SAY) --trials 1 --warmup 0 $$(device_opts))
endef

ROWS := $(if $(filter f16,$(RECIPES)),f16) $(filter-out f16,$(RECIPES))
$(eval $(call base_rule))
$(foreach r,$(filter-out f16,$(RECIPES)),$(eval $(call quant_rule,$(r),$(call esc,$(r)))))
$(foreach r,$(ROWS),$(eval $(call ppl_rule,$(r),$(call esc,$(r)))))
PPLS := $(foreach r,$(ROWS),$(M)/$(r)/ppl.json)
$(foreach r,$(ROWS),$(eval $(call bench_rule,$(r),$(call esc,$(r))))$(eval last_bench := $(M)/$(call esc,$(r))/say.json))

# ---- the report ----

parts = $(foreach r,$(ROWS),$(M)/$(r)/$(1).json)
RECORDS := $(call parts,quant) $(foreach r,$(ROWS),$(M)/$(r)/load.json $(M)/$(r)/ppl.json) \
           $(foreach r,$(ROWS),$(M)/$(r)/bench.json $(M)/$(r)/say.json)
report_n := $(tick)
$(M)/gen2/report.json: $(RECORDS) $(M)/.stamp/gen2 $(S)/qreport.tool
	@$(call say,$(report_n),report)
	@mkdir -p '$(@D)'
	@$(call json,$(if $(SAVE_EVAL_RESULTS),SAVE_EVAL_RESULTS=1,env -u SAVE_EVAL_RESULTS) '$(B)/qreport' table -q $(RECORDS:%='%') \
	    --md '$(@D)/report.md' --csv '$(@D)/report.csv' --plot '$(@D)')

gen2: $(M)/gen2/report.json
	@awk '/^\|/ { print; table = 1; next } table { exit }' $(M)/gen2/report.md; echo; echo "report: $$(realpath $(M)/gen2/report.md)"

# ---- smoke ----

# A tiny Qwen2-shaped model made of the byte pairs of a text, with an outlier channel: naive INT4 collapses on it.
SMOKE := $(OUT)/smoke-source
smoke:
	@$(MAKE) --no-print-directory -C $(ROOT) build/tests/mkmodel >/dev/null
	@mkdir -p '$(OUT)'; [ -e $(SMOKE)/config.json ] || { rm -rf $(SMOKE) $(SMOKE).part; \
	    $(ROOT)/build/tests/mkmodel bigram $(SMOKE).part --dtype f16; mv $(SMOKE).part $(SMOKE); }
	@$(MAKE) --no-print-directory gen2 OUT='$(abspath $(OUT))' B='$(abspath $(B))' METRICS='$(abspath $(METRICS))' MODEL='$(abspath $(SMOKE))' TEXT='$(abspath $(ROOT)/data/sample.txt)' CHARS=20000 \
	    PROMPT_TOKENS=64 GEN=16 SAY=24 FORMATS='f16 int8-row int4-row int4-g128 int4-g32 nf4'
