# gen1: where quantization hurts, and mixes that must earn their bytes.
#   OUT/<model>/sens-<mode>-<format>.json     qsens on SENS_TEXT, which the evaluation never sees
#   OUT/<model>/gen1/mix-*.json               recipes by plan.jq, one a budget; mix-portable-*: for transformers and vLLM
#   OUT/<model>/<recipe>/{model/,quant.json}  uniform formats and mixes, as in gen2
#   OUT/<model>/<recipe>/ppl.json             a uniform format against f16 on TEXT, as in gen2
#   OUT/<model>/gen1/ppl/<mix>.json           the same for a mix, per-token values beside; refuses leaked text
#   OUT/<model>/gen1/random/N.*.json          random mixes: recipe, quant, ppl (their weights are not kept)
#   OUT/<model>/gen1/bench-<recipe>-<prompt>.json
#   OUT/<model>/gen1/{report.md,sens/lbl_analysis.md,speed.md}; gen1.json stands for them

SENS_TEXT := data/calibration.txt
SENS_CHARS := 500
SENS_FORMAT := int4-g64
CANDIDATES := int4-g128 int4-g64 int4-g32 int4-g32+mse nf4 int8-row
PORTABLE := int4-g64-sym int4-g32-sym int4-g32-sym+mse int8-row
ALSO := fp4 seed-mixed
RANDOM_MIXES := 20
RANDOM_WINDOWS := 2
BENCH_PROMPTS := 64 256
BENCH_DEPTHS := 0,256

BENCH_TRIALS := 3
BENCH_GEN := 32

.PHONY: gen1
ifneq ($(filter gen1,$(MAKECMDGOALS)),)
# Stages are not numbered here: each says how long it may take instead.
say = printf '%s\n' '$(call q,$(2))'
G := $(M)/gen1

budget_given := $(if $(call given,BUDGET),$(strip $(BUDGET)))
# Budgets by name: 5.0 is its own name, a JSON budget's is made fit for a path.
BUDGET_NAMES := $(if $(budget_given),$(shell printf %s '$(call q,$(budget_given))' | tr -c 'A-Za-z0-9.-' _),4.5 5.0 5.5 6.5)
budget = $(if $(budget_given),$(budget_given),$(1))
MIXES := $(foreach b,$(BUDGET_NAMES),mix-$(b)$(if $(PORTABLE), mix-portable-$(b)))
UNIFORM := $(CANDIDATES) $(filter-out $(CANDIDATES),$(PORTABLE)) $(filter-out $(CANDIDATES) $(PORTABLE),$(ALSO))
RANDOMS := $(if $(filter-out 0,$(RANDOM_MIXES)),$(shell seq $(RANDOM_MIXES)))
SENS_PATH := $(call find_path,$(SENS_TEXT))

# About how long: $(1) is a jq expression, floating-point operations from the fields of qload's results. A rule of thumb.
about = jq -r --argjson cores "$$(nproc)" '.results | ($(1)) / (12e9 * $$cores) | if . < 90 then "about \(ceil) s" else "about \(. / 60 | ceil) min" end' $(M)/load.json
say_long = printf '%s (%s)\n' '$(call q,$(1))' "$$($(call about,$(2)))"

$(G)/.stamp/sens: FORCE
	$(call put,[ -e '$(call q,$(SENS_PATH))' ] || { echo 'SENS_TEXT=$(call q,$(SENS_TEXT)): no such file' >&2; exit 1; }; \
	    $(call identity,$(SENS_PATH)); printf '%s\n' 'chars $(call q,$(SENS_CHARS))' '$(call q,$(DEVICE))' 'compute $(call q,$(COMPUTE))')
$(G)/.stamp/plan: FORCE
	$(call put,printf '%s\n' '$(call q,$(BUDGET))' '$(call q,$(CANDIDATES))' '$(call q,$(PORTABLE))')
$(G)/.stamp/random: FORCE
	$(call put,printf '%s\n' '$(RANDOM_WINDOWS)' '$(call q,$(CANDIDATES))')
$(G)/.stamp/bench: FORCE
	$(call put,printf '%s\n' '$(call q,$(DEVICE))' 'compute $(call q,$(COMPUTE))' 'threads $(call q,$(THREADS))' \
	    '$(BENCH_DEPTHS) $(BENCH_GEN) $(BENCH_TRIALS)')
$(G)/.stamp/report: FORCE
	$(call put,printf '%s\n' '$(call q,$(MIXES))' '$(call q,$(UNIFORM))' '$(RANDOM_MIXES)' '$(BENCH_PROMPTS)')

# ---- sensitivities: $(1) mode, $(2) format ----

# Isolated and restore run on average half of the model once for each of its 7 × n_layers linears.
flops.local := 6 * .n_params * $(SENS_CHARS) / 4
flops.isolated := 7 * .n_layers * .n_params * $(SENS_CHARS) / 4
flops.restore := $(flops.isolated)

# A partial file of other options is older than what it was made for.
define sens_rule
$(M)/sens-$(1)-$(2).json: $(M)/f16/quant.json $(G)/.stamp/sens $(S)/qsens.tool
	@$$(call say_long,$(2): $(1) sensitivity of each linear,$$(flops.$(1)))
	@for s in $$^; do [ ! "$$$$s" -nt '$$@.part.jsonl' ] || rm -f '$$@.part.jsonl'; done
	@$$(call json,qsens $$(quiet) $(M)/f16/model -f '$(2)' --mode $(1) --text '$$(call q,$$(SENS_PATH))' \
	    --chars '$$(call q,$$(SENS_CHARS))' $$(run) -o '$$@.part.jsonl' $(if $(filter local,$(1)),--samples $(G)/samples))
	@rm -f '$$@.part.jsonl'
endef
ISOLATED := $(sort $(CANDIDATES) $(PORTABLE) $(SENS_FORMAT))
$(foreach f,$(ISOLATED),$(eval $(call sens_rule,isolated,$(f))))
$(foreach m,local restore,$(eval $(call sens_rule,$(m),$(SENS_FORMAT))))
SENS := $(foreach m,local isolated restore,$(M)/sens-$(m)-$(SENS_FORMAT).json)
ALL_SENS := $(SENS) $(foreach f,$(filter-out $(SENS_FORMAT),$(ISOLATED)),$(M)/sens-isolated-$(f).json)

# ---- recipes and what is made by them ----

plan = mkdir -p '$(@D)'; jq -n -f plan.jq --argjson budget '$(call q,$(call budget,$(1)))' \
    --argjson model "$$(cat $(M)/load.json)" $(2) $(foreach f,$(3),$(M)/sens-isolated-$(f).json) >'$@.tmp' || \
    { rm -f '$@.tmp'; exit 1; }; mv '$@.tmp' '$@'
define plan_rule
$(G)/mix-$(1).json: plan.jq $(G)/.stamp/plan $(foreach f,$(CANDIDATES),$(M)/sens-isolated-$(f).json)
	@$$(call say,,mix-$(1): planning)
	@$$(call plan,$(1),,$$(CANDIDATES))
$(G)/mix-portable-$(1).json: plan.jq $(G)/.stamp/plan $(foreach f,$(PORTABLE),$(M)/sens-isolated-$(f).json)
	@$$(call say,,mix-portable-$(1): planning)
	@$$(call plan,$(1),--argjson portable true,$$(PORTABLE))
endef
$(foreach b,$(BUDGET_NAMES),$(eval $(call plan_rule,$(b))))

define mix_rule
$(M)/$(1)/quant.json: $(M)/f16/quant.json $(G)/$(1).json $(S)/qquant.tool
	@$$(call say,,$(1): quantizing)
	@mkdir -p '$$(@D)'; $$(call sweep,model)
	@$$(call json,qquant -q $(M)/f16/model -r $(G)/$(1).json -o '$$(@D)/model' $$(threads))
endef
$(foreach r,$(MIXES),$(eval $(call mix_rule,$(r))))
# gen2 has the rules of its own formats.
$(foreach r,$(filter-out $(MADE),$(UNIFORM)),$(eval $(call quant_rule,$(r))))

# ---- damage on text the sensitivities never saw: uniform formats by gen2's rules, so that neither measures them twice ----

text_n := $(shell stat -L -c %s '$(call q,$(TEXT_PATH))' 2>/dev/null || echo 0)
flops.ppl = 2 * .n_params * ([$(text_n) / 4] + [$(if $(1),$(1) * 512)] | min)
say_ppl = $(call say_long,$(2),$(call flops.ppl,$(WINDOWS)))
leak := --leak '$(call q,$(SENS_PATH))'
$(foreach r,$(filter-out $(MADE),$(UNIFORM)),$(eval $(call ppl_rule,$(r))))
define mix_ppl_rule
$(G)/ppl/$(1).json: $(M)/$(1)/quant.json $(M)/.stamp/ppl $(G)/.stamp/sens $(S)/qppl.tool | $(M)/ref.states
	@$$(call say_ppl,,$(1): perplexity on $(text) against f16)
	@mkdir -p '$$(@D)'; $$(call json,qppl -q $(M)/$(1)/model $$(ppl) $$(leak) --nll '$$(@D)/$(1).nll')
endef
$(foreach r,$(MIXES),$(eval $(call mix_ppl_rule,$(r))))
GEN1_PPLS := $(UNIFORM:%=$(M)/%/ppl.json) $(MIXES:%=$(G)/ppl/%.json)

# A text that shares passages with the calibration is refused before anything is measured.
$(G)/leak.json: $(M)/f16/quant.json $(M)/.stamp/ppl $(G)/.stamp/sens $(S)/qppl.tool
	@$(call say,,$(text): shares nothing with $(notdir $(SENS_PATH))?)
	@$(call json,qppl -q $(M)/f16/model $(text_opts) $(leak) --max-windows 1)
$(ALL_SENS) $(M)/ref.states $(foreach r,$(UNIFORM),$(call at,$(r))/ppl.json): | $(G)/leak.json

random_ppl := $(text_opts) --max-windows $(RANDOM_WINDOWS) --ref $(M)/f16/model --ref-cache $(G)/ref-random.states $(logits)
define random_rule
$(G)/random/$(1).ppl.json: random.jq $(M)/f16/quant.json $(M)/.stamp/ppl $(G)/.stamp/random $(foreach f,$(CANDIDATES),$(M)/sens-isolated-$(f).json) \
    $(S)/qppl.tool $(S)/qquant.tool | $(GEN1_PPLS)
	@$$(call say_long,random mix $(1) of $(words $(RANDOMS)),$$(call flops.ppl,$$(RANDOM_WINDOWS)))
	@mkdir -p '$$(@D)'; rm -rf '$$@' '$$(@D)/$(1)' '$$(@D)/$(1).part-'* $(G)/ref-random.states*.part-*; \
	jq -n -f random.jq --argjson seed $(1) $$(foreach f,$$(CANDIDATES),$(M)/sens-isolated-$$(f).json) >'$$(@D)/$(1).recipe.json'; \
	$(BIN)/qquant -q $(M)/f16/model -r '$$(@D)/$(1).recipe.json' -o '$$(@D)/$(1)' >'$$(@D)/$(1).quant.json'; \
	$(BIN)/qppl -q '$$(@D)/$(1)' $$(random_ppl) >'$$@.tmp'; \
	rm -rf '$$(@D)/$(1)'; mv '$$@.tmp' '$$@'
endef
$(foreach k,$(RANDOMS),$(eval $(call random_rule,$(k))))
RANDOM_PPLS := $(foreach k,$(RANDOMS),$(G)/random/$(k).ppl.json)

# ---- speed, when nothing else runs ----

last_bench :=
define gen1_bench_rule
$(G)/bench-$(1)-$(2).json: $(M)/$(1)/quant.json $(G)/.stamp/bench $(S)/qbench.tool | $(GEN1_PPLS) $(RANDOM_PPLS) $(last_bench)
	@$$(call say_long,$(1): speed with $(2) prompt tokens at depths $$(subst $$(,), and ,$$(BENCH_DEPTHS)),\
	    2 * .n_params * ($(BENCH_TRIALS) + 1) * 2 * ($(2) + 10 * $(BENCH_GEN) + 128))
	@$$(call json,qbench -q $(M)/$(1)/model --prompt-tokens $(2) --depth $$(BENCH_DEPTHS) --gen $(BENCH_GEN) --trials $(BENCH_TRIALS) \
	    --warmup 1 $$(run))
endef
, := ,
$(foreach p,$(BENCH_PROMPTS),$(foreach r,f16 $(SENS_FORMAT),\
    $(eval $(call gen1_bench_rule,$(r),$(p)))$(eval last_bench := $(G)/bench-$(r)-$(p).json)))
BENCHES := $(foreach p,$(BENCH_PROMPTS),$(foreach r,f16 $(SENS_FORMAT),$(G)/bench-$(r)-$(p).json))

# The 16-bit original first: the others are held against it.
$(G)/speed.json: $(BENCHES) $(G)/.stamp/report $(S)/qreport.tool
	@$(call json,qreport speed -q $(sort $(filter $(G)/bench-f16-%,$(BENCHES))) $(filter-out $(G)/bench-f16-%,$(BENCHES)) -o '$(@D)')

# ---- reports ----

$(G)/sens/sens.json: $(SENS) $(S)/qreport.tool
	@$(call say,,report on sensitivities)
	@mkdir -p '$(@D)'; $(call json,qreport sens -q $(SENS) -o '$(@D)' --samples $(G)/samples --model $(M)/f16/model)
VERDICT := $(ALL_SENS) $(foreach r,$(UNIFORM) $(MIXES),$(M)/$(r)/quant.json) $(GEN1_PPLS) $(MIXES:%=$(G)/%.json) \
           $(foreach k,$(RANDOMS),$(G)/random/$(k).recipe.json $(G)/random/$(k).quant.json $(G)/random/$(k).ppl.json)
$(G)/gen1.json: $(ALL_SENS) $(GEN1_PPLS) $(RANDOM_PPLS) $(G)/sens/sens.json $(G)/speed.json $(G)/.stamp/report $(S)/qreport.tool
	@$(call say,,report)
	@$(call json,qreport mix -q $(VERDICT) -o '$(@D)')
	@printf '\n## More\n\n- [Sensitivity of each linear](sens/lbl_analysis.md)\n- [Speed](speed.md)\n' >>'$(@D)/report.md'

gen1: $(G)/gen1.json
	@awk '/^\|/ { print; table = 1; next } table { exit }' $(G)/report.md; echo; sed -n '/^|/p' $(G)/speed.md; echo; \
	echo "report: $$(realpath $(G)/report.md)"
else
gen1:
	@$(MAKE) --no-print-directory gen1
endif
