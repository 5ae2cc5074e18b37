# gen2: one model in many formats, and a report.
#   OUT/<model>/load.json                     what the source is
#   OUT/<model>/f16/model/                    the base of all formats: a link to a folder of 16-bit floats, else made of the source
#   OUT/<model>/<recipe>/model/               by qquant; quant.json is written last and stands for the folder
#   OUT/<model>/<recipe>/{load,ppl,bench}.json, say.json: what it says to PROMPT, ppl.nll: for qreport diff
#   OUT/<model>/ref.states                    f16's hidden states on TEXT, so that f16 runs once and not once a format;
#                                             ref.states.logits: its logits, if they take less than 2 GB; may be
#                                             deleted: whatever wants them next makes them again
#   OUT/<model>/gen2/                         report.md, report.csv, plots; report.json is written last and stands for them

FORMATS := f16 int8-row int4-row int4-strided128 int4-g128 int4-g64 int4-g32 int4-g64-sym int4-g32-sym+mse nf4 nf4-dq fp4 \
           int4-g64+head=int8-row
PROMPT := The three primary colours are
SAY_TOKENS := 32
BENCH := --prompt-tokens 512 --gen 32 --warmup 1 --trials 3

# The recipes to run, f16 first; a repeated one counts once.
RECIPES := $(strip $(FORMATS))
$(if $(shell [[ '$(call q,$(RECIPES))' =~ ^[A-Za-z0-9.\ _+=-]+$$ ]] || echo bad)$(filter gen% .% -% +%,$(RECIPES)),$(call \
    complain,FORMATS=$(FORMATS): names of formats or recipes were expected))
ROWS := $(filter f16,$(firstword $(filter f16,$(RECIPES))))
$(foreach r,$(RECIPES),$(if $(filter $(r),$(ROWS)),,$(eval ROWS += $$(r))))
ROWS := $(strip $(ROWS))
MADE := $(filter-out f16,$(ROWS))

# Make reads "a=b: c" as a definition, unless the sign is hidden in a variable while the line is read.
EQ := =
esc = $(subst =,$$(EQ),$(1))
at = $(M)/$(call esc,$(1))

# ---- stamps: what the stages depend on besides files ----

$(M)/.stamp/source: FORCE | $(SRC_READY)
	$(call put,$(call identity,$(SRC)))
$(M)/.stamp/ppl: FORCE | $(TEXT_READY)
	$(call put,sha256sum < '$(call q,$(TEXT_PATH))'; printf '%s\n' 'form $(call q,$(TEXT_FORM))' 'protocol $(call q,$(PROTOCOL))' \
	    'chars $(call q,$(CHARS))' 'windows $(call q,$(WINDOWS))' 'device $(call q,$(DEVICE))' 'compute $(call q,$(COMPUTE))')
$(M)/.stamp/bench: FORCE
	$(call put,printf '%s\n' 'device $(call q,$(DEVICE))' 'compute $(call q,$(COMPUTE))' 'threads $(call q,$(THREADS))' \
	    'options $(call q,$(BENCH))')
$(M)/.stamp/say: FORCE
	$(call put,printf '%s\n' 'device $(call q,$(DEVICE))' 'compute $(call q,$(COMPUTE))' 'prompt $(call q,$(PROMPT))' \
	    'tokens $(call q,$(SAY_TOKENS))')
$(M)/.stamp/gen2: FORCE
	$(call put,printf '%s\n' 'rows $(ROWS)' 'save $(if $(SAVE_EVAL_RESULTS),$(call q,$(METRICS)))')

# Reading the reference's logits is quicker than its head on a CPU.
logits := $(if $(filter cpu,$(DEVICE)),--ref-logits 2048)
threads := $(if $(THREADS),-t '$(call q,$(THREADS))')
run := $(threads) --device '$(call q,$(DEVICE))' $(if $(COMPUTE),--compute '$(call q,$(COMPUTE))')
text_opts := --text '$(call q,$(TEXT_PATH))' --text-form '$(call q,$(TEXT_FORM))' --protocol '$(call q,$(PROTOCOL))' $(run)
ppl := $(text_opts) $(if $(CHARS),--chars '$(call q,$(CHARS))') $(if $(WINDOWS),--max-windows '$(call q,$(WINDOWS))') \
    --ref $(M)/f16/model --ref-cache $(M)/ref.states $(logits)
text := $(notdir $(subst $() ,_,$(TEXT_PATH)))
# What int8 compute costs, where quality is computed in f32: a column of the report.
also := $(if $(filter-out f32,$(COMPUTE)),,--also int8 --also-windows 4)
# What runs that were killed left behind.
sweep = rm -rf '$(@D)'/$(1).part-* '$(@D)'/$(1).old-*

# ---- the source and its 16-bit form ----

load_n := $(tick)
$(M)/load.json: $(M)/.stamp/source $(S)/qload.tool
	@$(call say,$(load_n),$(model): checking the source)
	@$(call json,qload $(quiet) '$(call q,$(SRC))')

floats := .results | select(.quantization == null) | .weights_bytes as $$all | .dtypes | to_entries[] | \
    select((.key == "F16" or .key == "BF16") and .value > 0.99 * $$all) | .key | ascii_downcase
base_n := $(tick)
# A link does not depend on what qload makes of a source; a folder that qload wrote does.
$(M)/f16/quant.json: $(M)/.stamp/source $(if $(shell [ ! -L $(M)/f16/model ] || echo link),,$(S)/qload.tool) $(S)/qquant.tool | $(M)/load.json
	@mkdir -p '$(@D)'; rm -f '$@'; $(call sweep,model); rm -rf '$(@D)/model'; \
	float=; [ ! -d '$(call q,$(SRC))' ] || float=$$(jq -r '$(floats)' $(M)/load.json); \
	if [ -n "$$float" ]; then \
	    $(call say,$(base_n),f16: a link to the source); \
	    [ "$$float" = f16 ] || echo "        (its weights are $$float)"; \
	    ln -s "$$(realpath '$(call q,$(SRC))')" '$(@D)/model'; \
	else \
	    $(call say,$(base_n),f16: writing the source as 16-bit floats); \
	    $(BIN)/qload $(quiet) '$(call q,$(SRC))' --dtype f16 -o '$(@D)/model' >/dev/null; \
	fi; \
	$(call json,qquant -q '$(@D)/model' -f "$${float:-f16}" --plan)

# ---- the stages of a recipe; rules are made for each ----

define quant_rule
$(call at,$(1))/quant.json: $(M)/f16/quant.json $(call esc,$(wildcard recipes/$(1).json)) $(S)/qquant.tool
	@$$(call say,$(tick),$(1): quantizing)
	@mkdir -p '$$(@D)'; $$(call sweep,model); $$(call json,qquant $$(quiet) $(M)/f16/model \
	    $(if $(wildcard recipes/$(1).json),-r 'recipes/$(1).json',-f '$(1)') -o '$$(@D)/model' $$(threads))
endef

define load_rule
$(call at,$(1))/load.json: $(call at,$(1))/quant.json $(S)/qload.tool
	@$$(call say,$(tick),$(1): checking the folder)
	@$$(call json,qload $$(quiet) '$$(@D)/model' --tensors)
endef

say_ppl = $(call say,$(1),$(2))
# f16's own perplexity leaves the hidden states for the others. They need not be newer, only there: qppl knows by a
# digest whether they fit.
define ref_rule
$(M)/f16/ppl.json $(M)/ref.states &: $(M)/f16/quant.json $(M)/.stamp/ppl $(S)/qppl.tool
	@$$(call say_ppl,$(tick),f16: perplexity on $(text))
	@rm -f $(M)/f16/ppl.json* $(M)/ref.states*; $(BIN)/qppl $$(quiet) $(M)/f16/model $$(ppl) --nll $(M)/f16/ppl.nll \
	    > $(M)/f16/ppl.json.$$$$$$$$.tmp && mv $(M)/f16/ppl.json.$$$$$$$$.tmp $(M)/f16/ppl.json
endef
define ppl_rule
$(call at,$(1))/ppl.json: $(call at,$(1))/quant.json $(M)/.stamp/ppl $(S)/qppl.tool | $(M)/ref.states
	@$$(call say_ppl,$(tick),$(1): perplexity on $(text) against f16)
	@$$(call sweep,ppl.nll); $$(call json,qppl $$(quiet) '$$(@D)/model' $$(ppl) $$(also) --nll '$$(@D)/ppl.nll')
endef

# Speed is measured while nothing else runs: after all that is above, one format after the other, whatever -j says;
# the lock is for another make at the same time.
define bench_rule
$(call at,$(1))/bench.json: $(call at,$(1))/quant.json $(M)/.stamp/bench $(S)/qbench.tool | $$(MEASURED) $(last)
	@$$(call say,$(tick),$(1): speed)
	@exec 9> $(OUT)/.stamp/bench.lock; flock 9; $$(call json,qbench $$(quiet) '$$(@D)/model' $$(BENCH) $$(run))
last := $(call at,$(1))/bench.json
endef
define say_rule
$(call at,$(1))/say.json: $(call at,$(1))/quant.json $(M)/.stamp/say $(S)/qbench.tool
	@$$(call say,$(tick),$(1): a sentence)
	@$$(call json,qbench $$(quiet) '$$(@D)/model' --prompt '$$(call q,$$(PROMPT))' --gen $$(SAY_TOKENS) --trials 1 --warmup 0 $$(run))
endef

of = $(foreach r,$(ROWS),$(M)/$(r)/$(1).json)
MEASURED := $(call of,ppl) $(call of,load) $(call of,say)
last :=
$(foreach r,$(MADE),$(eval $(call quant_rule,$(r))))
$(foreach r,$(ROWS),$(eval $(call load_rule,$(r))))
$(eval $(call ref_rule))
$(foreach r,$(MADE),$(eval $(call ppl_rule,$(r))))
$(foreach r,$(ROWS),$(eval $(call say_rule,$(r))))
$(foreach r,$(ROWS),$(eval $(call bench_rule,$(r))))

# ---- the report ----

RECORDS := $(call of,quant) $(call of,load) $(call of,ppl) $(call of,say) $(call of,bench)
report_n := $(tick)
$(M)/gen2/report.json: $(RECORDS) $(M)/.stamp/gen2 $(S)/qreport.tool
	@$(call say,$(report_n),report)
	@mkdir -p '$(@D)'; rm -f '$(@D)'/*.{md,csv,svg,png,gp}; $(call json,qreport table -q $(RECORDS:%='%') \
	    --md '$(@D)/report.md' --csv '$(@D)/report.csv' --plot '$(@D)')

.PHONY: gen2 smoke
gen2: $(M)/gen2/report.json
	@awk '/^\|/ { print; table = 1; next } table { exit }' $(M)/gen2/report.md
	@echo; echo "report: $$(realpath $(M)/gen2/report.md)"

# ---- smoke ----

SMOKE := f16 int8-row int4-row int4-g128 int4-g32 nf4
collapse := [.results.rows[] | {(.name): (.ppl.mean * 100 | round / 100)}] | add | \
    if .["int4-row"] > 5 * .f16 and .["int4-g32"] < 1.1 * .f16 \
    then "smoke: good. Naive INT4 takes perplexity from \(.f16) to \(.["int4-row"]), groups of 32 to \(.["int4-g32"])" \
    else "smoke: not the perplexities expected of the tiny model: \(.)\n" | halt_error(1) end
smoke:
	@$(MAKE) --no-print-directory gen2 MODEL=tiny-qwen2 FORMATS='$(SMOKE)' TEXT=data/sample.txt CHARS=6000 \
	    PROMPT='The ' BENCH='--prompt-tokens 64 --gen 16 --warmup 1 --trials 3'
	@jq -er '$(collapse)' $(OUT)/tiny-qwen2/gen2/report.json
