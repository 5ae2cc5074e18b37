# random.jq: isolated qsens records in, a random mix of their formats as a recipe out, for predicted against measured damage.
#   jq -n -f random.jq --argjson seed 1 SENS.json… > recipe.json
# A share of the linears, drawn first (0 to 60 %), gets the last record's format; the rest one of the others each.

def step: (. * 69069 + 1) % 4294967296;  # Marsaglia's generator: exact in doubles

[inputs] as $records
| ($records | length) as $n
| if $n < 2 then error("random: at least two qsens records were expected") else . end
| reduce range(8) as $_ ((($seed * 7919 + 12345) % 4294967296); step)
| (. / 4294967296 * 0.6) as $share
| {s: ., rules: [], predicted: 0}
| reduce range($records[0].results.tensors | length) as $i (.;
    (.s | step) as $a | ($a | step) as $b | .s = $b
    | (if $a / 4294967296 < $share then $n - 1 else $b / 4294967296 * ($n - 1) | floor end) as $k
    | $records[$k].results as $r
    | .rules += [{match: $r.tensors[$i].name, format: $r.format, method: ($r.method // "rtn")}]
    | .predicted += ([$r.tensors[$i].kld, 0] | max))
| {default: $records[0].results.format, rules: .rules, plan: {random: $seed, share: $share, predicted: .predicted}}
