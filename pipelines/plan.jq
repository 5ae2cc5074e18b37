# plan.jq: sensitivities and a budget in, a recipe for qquant -r out.
#
#   jq -n -f plan.jq --argjson budget 5.0 SENS.json… > recipe.json
#   qsens MODEL -f int4-g64 --text FILE --mode isolated | jq -f plan.jq --argjson budget 6.5 > recipe.json
#
# SENS.json: qsens records, one a candidate format, of one model, text and mode (isolated or restore), --per tensor.
# Each decoder linear gets the format that makes the sum of predicted damages least without going over the budget.
# A record made with -f FORMAT+mse is the candidate of that name: same bytes, codes chosen otherwise.
# Damage is the record's KLD at the model's output, floored at 0; keeping a linear in float costs its bytes and no damage.
#
# Arguments (--argjson unless it says --arg):
#   budget      5.0 or {"bpw":5.0}      bits a weight over the decoder linears, metadata included
#               {"bytes":N}             bytes of the decoder linears
#               {"gib":6,"ctx":4096}    weights of the whole model + f16 KV cache of ctx tokens; needs model
#               {"like":"int4-g64"}     no larger than that uniform format
#   keep        {"GLOB":"FORMAT",…} or ["GLOB",…] (kept in float): these linears get this format. * crosses dots
#   ties        "servers": q/k/v share a format, and gate/up (they are fused by servers); [["q_proj","k_proj"],…]: these
#               operations of a layer share one; null: none. Default: "servers" with portable, else none
#   portable    true: only formats that transformers and vLLM both open in a mix: symmetric INT4, INT8, float; ties
#   formats     ["int4-g64",…]: use only these of the candidates ("f16" among them or not)
#   float       (--arg) name of the float candidate: f16 (default) or bf16; a record of that format takes its place
#   metric      (--arg) kld (default) or delta_nll
#   model       a qload record of the model: dimensions, for {"gib"} and to check that no linear is missing
#
# Output: {"default":F,"rules":[{"match":…,"format":F}…],"plan":{predicted, bytes, bpw, budget, budget_bytes, lower_bound,
# gap, optimal,…}}. No choice within the budget can have less damage than lower_bound (the Lagrangian bound);
# gap = predicted - lower_bound; optimal: the search proved that nothing better exists. The same input gives the same
# output. What cannot be done ends with one line "plan: …" and exit code 5.

def fail($msg): error("plan: " + $msg);
def arg($name): $ARGS.named[$name];
# Run a stream of checks for their errors. (a // b would swallow them.)
def check(stream): reduce stream as $unused (.; .);
def spell: if type == "string" then . else tojson end;
def list: map(tostring) | join(", ");
# The first few of a list, for a message.
def few: if length <= 3 then list else (.[:3] | list) + " and \(length - 3) more" end;

# --- Input: records to a table of linears

def is_name: type == "string" and test("^[A-Za-z0-9_.]+$") and test("\\.layers\\.[0-9]+\\..");
def op_of: sub(".*\\."; "");
def layer_of: capture("^(?<prefix>.*\\.layers\\.[0-9]+)\\.").prefix;

# One record: {format, mode, key (what must agree between records), all (its total damage), tensors}
def read_record:
    if type != "object" or (.schema | type) != "string" then fail("not a qlab record (records of qsens were expected)")
    elif .schema != "qlab.qsens/1" then fail("record of schema \(.schema) (qlab.qsens/1 was expected)")
    elif (.results | type) != "object" or (.results.tensors | type) != "array" or (.results.format | type) != "string"
    then fail("a qsens record without results")
    elif .results.mode == "local"
    then fail("\(.results.format): mode local has no \(arg("metric") // "kld") (isolated or restore was expected)")
    elif any(.results.tensors[]; type != "object") then fail("\(.results.format): an entry of results.tensors is not an object")
    elif (.results.tensors | length) == 0 then fail("\(.results.format): no linears in the record")
    else . end
    | . as $r
    | ($r.results.tensors | map(select(.name | is_name | not) | .name)) as $odd
    | if $odd != [] then fail("\($r.results.format): \($odd | few): not a decoder linear (--per tensor was expected)") else . end
    | {format: (.results | .format + if (.method // "rtn") == "rtn" then "" else "+\(.method)" end), mode: .results.mode, all: .results.all, tensors: .results.tensors,
       key: {model: [.inputs[]? | select(.role == "model") | .sha256], text: [.inputs[]? | select(.role == "text") | .sha256],
             n_tokens: .results.n_tokens, mode: .results.mode}};

def check_agree:
    . as $records
    | (group_by(.format) | map(select(length > 1) | .[0].format)) as $twice
    | if $twice != [] then fail("\($twice | few): two records of one format") else . end
    | check(("model", "text", "n_tokens", "mode") as $k | $records[] | select(.key[$k] != $records[0].key[$k])
            | fail("records of \($records[0].format) and \(.format) differ in \($k)"));

# Damage of one tensor entry. In restore mode the entry says what is left when this linear is back in float.
def damage($record; $metric):
    . as $t
    | ($t[$metric]) as $v
    | if ($v | type) != "number" or ($v | isnan or isinfinite)
      then fail("\($t.name): \($metric) for \($record.format) is \($v | tojson) (a finite number was expected)")
      elif $record.mode == "restore"
      then $record.all[$metric] as $all
           | if ($all | type) != "number" then fail("\($record.format): results.all.\($metric) is missing") else $all - $v end
      else $v end
    | if . < 0 then 0 else . end;

# [n_out, n_in] of each operation
def dims($model):
    $model.results as $r
    | ($r.n_heads * $r.head_dim) as $q | ($r.n_kv_heads * $r.head_dim) as $kv
    | {q_proj: [$q, $r.hidden_size], k_proj: [$kv, $r.hidden_size], v_proj: [$kv, $r.hidden_size],
       o_proj: [$r.hidden_size, $q], gate_proj: [$r.intermediate_size, $r.hidden_size],
       up_proj: [$r.intermediate_size, $r.hidden_size], down_proj: [$r.hidden_size, $r.intermediate_size]};

def positive_int: type == "number" and . > 0 and . == floor;

def check_names($records; $model):
    ($records[0].tensors | map(.name)) as $names
    | ($names | map({(.): 1}) | add) as $want
    | check($records[] | .format as $f | .tensors | group_by(.name)[] | select(length > 1)
            | fail("\(.[0].name): twice in the record of \($f)"))
    | check($records[1:][] | .format as $f | (.tensors | map({(.name): 1}) | add) as $have
            | ($names | map(select($have[.] | not)) | select(. != []) | fail("\(few): missing from the record of \($f)")),
              ($have | keys_unsorted | map(select($want[.] | not)) | select(. != [])
               | fail("\(few): missing from the record of \($records[0].format)")))
    | check($model | select(.) | .results.n_layers * 7 | select(. != ($names | length))
            | fail("\($names | length) linears in the records (\(.) were expected from the model)"));

# [{name, n (weights), n_in, before, options: [{format, bytes, damage}]}]
def table($records; $metric; $float; $model):
    (if $model then dims($model) else {} end) as $dims
    | check_names($records; $model)
    | ($records | map(.format)) as $formats
    | ($records | map(. as $r | .tensors | map({(.name): {t: ., d: damage($r; $metric)}}) | add)) as $by
    | $records[0].tensors
    | map(.name as $name
        | [$by[][$name].t] as $all
        | check($all[] | select((.bytes_after | positive_int | not) or (.bytes_before | positive_int | not))
                | fail("\($name): bytes_before or bytes_after is missing or not a whole number"))
        | check($all | select(map(.bytes_before) | unique | length > 1) | fail("\($name): records differ in bytes_before"))
        | (.shape // $dims[$name | op_of]) as $shape
        | (if $shape then $shape[0] * $shape[1] else .bytes_before / 2 end) as $n  # without a shape: two bytes a weight
        | {name: $name, n: $n, n_in: $shape[1], before: .bytes_before,
           options: ([range($formats | length) as $i
                      | {format: $formats[$i], bytes: $all[$i].bytes_after, damage: $by[$i][$name].d}]
                     + if $formats | index($float) then [] else [{format: $float, bytes: ($n * 2), damage: 0}] end)});

# --- Options: which formats, what is kept, what is tied

# As fnmatch: * ? [...]
def glob_to_regex:
    gsub("(?<c>[.+^$(){}|\\\\])"; "\\\(.c)") | gsub("\\*"; ".*") | gsub("\\?"; ".") | gsub("\\[!"; "[^") | "^" + . + "$";

def keep_list($float):
    arg("keep") as $k
    | if $k == null then []
      elif ($k | type) == "array" then $k | map({glob: ., format: $float})
      elif ($k | type) == "object" then $k | to_entries | map({glob: .key, format: .value})
      else fail("keep: an object {\"GLOB\":\"FORMAT\"} or a list of globs was expected") end
    | map(if (.glob | type) != "string" or (.format | type) != "string" then fail("keep: strings were expected") else . end);

def apply_keep($keep):
    . as $linears
    | reduce $keep[] as $k ($linears;
        ($k.glob | glob_to_regex) as $re
        | if any(.[]; .name | test($re)) | not then fail("keep: \($k.glob) matches no linear") else . end
        | map(if .name | test($re)
              then if .kept and .kept != $k.format
                   then fail("keep: \(.name) is to be \(.kept) and \($k.format)")
                   else .kept = $k.format end
              else . end))
    | map(if .kept
          then .kept as $f | .name as $name
               | .options |= map(select(.format == $f))
               | if .options == [] then fail("keep: no record of \($f) for \($name)") else . end
          else . end);

# A group that does not divide the row opens nowhere else.
def is_portable($float; $n_in):
    split("+")[0]
    | if IN($float, "f16", "bf16", "int8-row") then true
    else (capture("^int4-g(?<g>[0-9]+)-sym$") // {g: "0"} | .g | tonumber) as $g
         | $g > 0 and ($n_in == null or $n_in % $g == 0) end;

def candidates($float; $portable):
    arg("formats") as $f
    | (.[0].options | map(.format)) as $have
    | if $f == null then .
      elif ($f | type) != "array" then fail("formats: a list of names was expected")
      else ($f - $have) as $none
           | if $none != [] then fail("\($none | few): no record of this format (there are \($have | list))") else . end
           | map(.options |= map(select(.format as $x | $f | index($x)))) end
    | if $portable then map(.n_in as $n_in | .options |= map(select(.format | is_portable($float; $n_in)))) else . end
    | check(.[] | select(.options == []) | fail("\(.name): no candidate format is left (there were \($have | list))"));

def tie_groups($portable):
    (if $ARGS.named | has("ties") then arg("ties") elif $portable then "servers" else null end)
    | if . == null or . == false then []
      elif . == "servers" then [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]
      elif type == "array" and all(.[]; type == "array" and all(.[]; type == "string")) then .
      else fail("ties: \"servers\", null or lists of operations were expected") end;

# Linears to items: those tied in a layer become one, whose options are the formats all of them have.
def tie($groups):
    . as $linears
    | map(. as $l
          | [range($groups | length) as $g | select($groups[$g] | index($l.name | op_of)) | $g] as $in
          | if ($in | length) > 1 then fail("ties: \($l.name | op_of) is in two lists") else . end
          | . + {item: (if $in == [] then .name else "\(.name | layer_of) tie \($in[0])" end)})
    | group_by(.item)
    | map(. as $members
          | {names: map(.name), n: (map(.n) | add),
             options: ([.[0].options[].format as $f
                        | [$members[].options[] | select(.format == $f)] as $same
                        | select(($same | length) == ($members | length))
                        | {format: $f, bytes: ($same | map(.bytes) | add), damage: ($same | map(.damage) | add)}]
                       | sort_by(.bytes, .damage, .format))}
          | if .options == [] then fail("\(.names | list): tied, but kept in different formats") else . end);

# --- Budget in bytes of the linears

def uniform_bytes($f):
    [.[] | .options[] | select(.format == $f) | .bytes] as $b
    | if ($b | length) == length then $b | add
      else fail("like \($f): no record of this format (there are \(.[0].options | map(.format) | list))") end;

def gib_budget($b; $model):
    (map(.before) | add) as $before
    | $model.results as $r
    | if ($model | not) then fail("a budget in gib needs --argjson model (a qload record)") else . end
    | if ($b.ctx // 0 | type) != "number" or ($b.ctx // 0) < 0 then fail("budget: ctx is not a number of tokens") else . end
    | ($r.n_layers * $r.n_kv_heads * $r.head_dim * 4 * ($b.ctx // 0)) as $kv
    | ($r.weights_bytes - $before) as $rest
    | if $rest < 0 then fail("the model has fewer bytes than its linears: not the model of these records") else . end
    | $b.gib * 1073741824 - $kv - $rest;

def budget_bytes($budget; $model):
    (map(.n) | add) as $n
    | def number($x): if ($x | type) == "number" and ($x | isinfinite or isnan | not) and $x > 0 then $x
                      else fail("budget \($budget | spell): a positive number was expected") end;
    if $budget == null then fail("no budget (--argjson budget 5.0, {\"bytes\":N}, {\"gib\":x,\"ctx\":n} or {\"like\":\"int4-g64\"})")
    elif ($budget | type) == "number" then number($budget) * $n / 8
    elif ($budget | type) != "object" then fail("budget \($budget | spell): a number or an object was expected")
    elif ($budget | del(.ctx) | keys | length) > 1 or ($budget | has("ctx") and (has("gib") | not))
    then fail("budget \($budget | spell): one of bpw, bytes, like, or gib with ctx was expected")
    elif $budget.bpw then number($budget.bpw) * $n / 8
    elif $budget.bytes then number($budget.bytes)
    elif $budget.like then uniform_bytes($budget.like)
    elif $budget.gib then number($budget.gib) as $x | gib_budget($budget; $model)
    else fail("budget \($budget | spell): one of bpw, bytes, gib, like was expected") end
    | floor;

# --- The choice: a multiple-choice knapsack

def undominated:
    . as $o | [foreach range($o | length) as $i ([infinite, false];
        if $o[$i].damage < .[0] then [$o[$i].damage, true] else [.[0], false] end; select(.[1]) | $o[$i])];

# Options that are worth their bytes at some price of a byte: the lower convex hull of (bytes, damage), as indices.
def hull:
    . as $o
    | reduce range($o | length) as $k ([];
        until(length < 2 or (($o[.[-1]].damage - $o[$k].damage) * ($o[.[-1]].bytes - $o[.[-2]].bytes)
                             < ($o[.[-2]].damage - $o[.[-1]].damage) * ($o[$k].bytes - $o[.[-1]].bytes)); .[:-1])
        + [$k]);

# Steps along each item's hull, dearest gain first: [-gain, item, step, bytes, option reached]
def steps($items):
    [range($items | length) as $i | $items[$i].options as $o | ($o | hull) as $h
     | foreach range(1; $h | length) as $s ({gain: infinite};
         ($o[$h[$s]].bytes - $o[$h[$s - 1]].bytes) as $bytes
         | .gain = ([.gain, ($o[$h[$s - 1]].damage - $o[$h[$s]].damage) / $bytes] | min)
         | .step = [-.gain, $i, $s, $bytes, $h[$s]]; .step)]
    | sort;

# Take steps while they fit: {base: option of each item, price of a byte at the first step that does not fit or 0, slack}
def greedy($items; $budget):
    reduce steps($items)[] as [$gain, $i, $s, $bytes, $k]
        ({base: ($items | map(0)), slack: ($budget - ([$items[].options[0].bytes] | add)), price: null};
         if .price then . elif $bytes > .slack then .price = -$gain else .slack -= $bytes | .base[$i] = $k end)
    | .price |= (. // 0);

# At most $cap of a front's partial choices: half with the least penalties, half the best of each range of bytes.
def thin($front; $cap):
    $front[0][0] as $lo | (($front[-1][0] - $lo + 1) / $cap * 2) as $width
    | $front | sort_by(.[2], .[0]) | .[:$cap / 2] + (.[$cap / 2:] | group_by((.[0] - $lo) / $width | floor) | map(min_by(.[2])));

# Exact finish. At this price of a byte every option has a penalty: what damage + price * bytes exceeds its item's least by.
# A full choice costs the Lagrangian bound + its penalties + price * unused bytes, so options and partial choices whose
# penalties alone reach the best cost known are dropped. Of the rest, [extra bytes, extra damage, options so far] against
# the base choice, the Pareto front is kept; where it has to be thinned, the result is good, but nothing is proved.
def finish($core; $price; $slack; $best; $cap):
    ($core | length) as $n
    | (reduce range($n - 1; -1; -1) as $i ([[0, 0]];  # what the items still to come can take off or add
        [[.[0][0] + ($core[$i].options | map(.extra) | min), .[0][1] + ($core[$i].options | map(.extra) | max)]] + .)) as $rest
    | reduce range($n) as $i ({front: [[0, 0, 0, null]], cut: false};
        ($slack - $rest[$i + 1][0]) as $room | ($slack - $rest[$i + 1][1]) as $reach
        | ([.front[] as [$w0, $d0, $c0, $path] | $core[$i].options[]
            | ($w0 + .extra) as $w | ($c0 + .penalty) as $c
            | select($w <= $room and ($c + if $reach > $w then $price * ($reach - $w) else 0 end) < $best)
            | [$w, $d0 + .damage, $c, [.k, $path]]]
           | sort
           | [foreach .[] as $p ([infinite, false]; if $p[1] < .[0] then [$p[1], true] else [.[0], false] end;
                                 select(.[1]) | $p)]) as $front
        | if $front | length > $cap then {front: (thin($front; $cap)), cut: true} else .front = $front end)
    | .found = (.front | map({damage: .[1], extra: .[0], picks: [.[3] | recurse(.[1]; . != null) | select(. != null) | .[0]]})
                | min_by(.damage, .extra) | if . then .picks |= reverse else . end)
    | del(.front);

# {choice: option of each item, bound, optimal}
def choose($items; $budget):
    greedy($items; $budget) as {base: $base, slack: $slack, price: $price}
    | ($items | map(.options | map(.damage + $price * .bytes))) as $cost
    | ($cost | map(min)) as $least
    | (($least | add) - $price * $budget) as $bound
    | ([range($items | length) as $i | $items[$i].options[$base[$i]].damage] | add) as $damage
    # options that alone do not lose as much as the best choice known; items with such a choice, widest first
    | def core($best): [range($items | length) as $i | $items[$i].options as $o
          | {i: $i, options: [range($o | length) as $k | ([$cost[$i][$k] - $least[$i], 0] | max) as $penalty
                              | select($penalty < $best or $k == $base[$i])
                              | {k: $k, extra: ($o[$k].bytes - $o[$base[$i]].bytes),
                                 damage: ($o[$k].damage - $o[$base[$i]].damage), penalty: $penalty}]}
          | select(.options | length > 1)]
          | sort_by(-(.options | map(.extra) | max - min), .i);
      def run($best; $cap): core($best * (1 + 1e-9) + 1e-300) as $core
          | finish($core; $price; $slack; $best * (1 + 1e-9) + 1e-300; $cap)
          | .items = ($core | map(.i));
    if $slack == 0 or $price == 0 then {choice: $base, bound: $bound, optimal: true}
    else
        def better($a): if .found and .found.damage < $a.found.damage then . else $a end;
        # each round knows a better choice than the one before, so its core is smaller and the front fits more of it
        reduce (60, 60, 100, 200, 400, 600) as $cap ({won: {found: {damage: 0, picks: []}, items: []}, cut: true};
            if .cut then .won as $won
                 | run($damage - $bound + $won.found.damage; $cap) as $r
                 | {won: ($r | better($won)), cut: $r.cut}
            else . end)
        | .won as $won
        | {bound: $bound, optimal: (.cut | not),
           choice: (reduce range($won.items | length) as $j ($base; .[$won.items[$j]] = $won.found.picks[$j]))}
    end;

# --- Recipe: the commonest format is the default; one rule for an operation or a layer where that says it all

# Sets of linears (by key) that share one format other than the default: [{match, format, names}]
def whole($default; key; glob):
    group_by(.name | key)
    | map(select(length > 1 and .[0].format != $default and (map(.format) | unique | length) == 1)
          | {match: (.[0].name | glob), format: .[0].format, names: map(.name)});

def recipe: # of [{name, n, format}], in the order of the records
    . as $all
    | (group_by(.format) | map({f: .[0].format, n: (map(.n) | add)}) | max_by(.n, .f) | .f) as $default
    | (whole($default; op_of; "*." + op_of) + whole($default; layer_of; layer_of + ".*")
       + map(select(.format != $default) | {match: .name, format, names: [.name]})) as $rules
    | {default: $default,
       rules: (reduce $rules[] as $r ({rules: [], seen: {}};
                   .seen as $seen
                   | if $r.names | all($seen[.]) then .
                     else .rules += [$r | del(.names)] | .seen += ($r.names | map({(.): true}) | add) end)
               | .rules)};

# Names of candidates to what qquant reads: FORMAT+METHOD is a format and a method, which rules inherit from the default.
def split_methods:
    def method: split("+")[1] // "rtn";
    (.default | method) as $of_default
    | .rules |= map((.format | method) as $m
                    | .format |= split("+")[0] | if $m == $of_default then . else .method = $m end)
    | .default |= split("+")[0]
    | if $of_default == "rtn" then . else {default, method: $of_default, rules} end;

# --- All of it

(($ARGS.named | keys) - ["budget", "keep", "ties", "portable", "formats", "float", "metric", "model"]) as $odd
| check(select($odd != []) | fail("\($odd | few): no argument of that name"))
| (if . == null then [inputs] elif type == "array" then . else [., inputs] end)
| if . == [] then fail("no records (qsens records were expected)") else map(read_record) | check_agree end
| . as $records
| (arg("metric") // "kld") as $metric
| check(select(IN($metric; "kld", "delta_nll") | not) | fail("metric \($metric): kld or delta_nll was expected"))
| (arg("float") // "f16") as $float
| check(select(IN($float; "f16", "bf16") | not) | fail("float \($float): f16 or bf16 was expected"))
| arg("model") as $model
| check($model | select(. != null and .schema != "qlab.qload/1") | fail("model: a qload record was expected"))
| table($records; $metric; $float; $model) as $table
| ($table | budget_bytes(arg("budget"); $model)) as $budget
| ($table | candidates($float; arg("portable") == true) | apply_keep(keep_list($float))) as $linears
| ($linears | tie(tie_groups(arg("portable") == true)) | map(.options |= undominated)) as $items
| ($linears | map(.n) | add) as $n
| def bpw: . * 8 / $n * 1e6 | round / 1e6;
  ([$items[].options[0].bytes] | add) as $least
| ([$linears[].options | map(.bytes) | max] | add) as $most
| if $budget < $least
  then fail("budget \(arg("budget") | spell) leaves \($budget) bytes for the linears (\($least) to \($most) bytes, \($least | bpw) to "
            + "\($most | bpw) bits a weight, can be reached\(if arg("keep") then " with this keep list" else "" end))")
  else choose($items; $budget) end
| . as $won
| [range($items | length) as $i | $items[$i].options[$won.choice[$i]] + {names: $items[$i].names}] as $picked
| ($picked | map(.format as $f | .names[] | {(.): $f}) | add) as $format
| ($picked | map(.damage) | add) as $predicted
| ($picked | map(.bytes) | add) as $bytes
| ([$won.bound, 0] | max | [., $predicted] | min) as $bound
| ($linears | map({name, n, format: $format[.name]}) | recipe | split_methods)
+ {plan: {predicted: $predicted, bytes: $bytes, bpw: ($bytes | bpw), budget: arg("budget"), budget_bytes: $budget,
          lower_bound: $bound, gap: ($predicted - $bound), optimal: $won.optimal, metric: $metric, mode: $records[0].mode,
          n_linears: ($linears | length), reachable_bytes: [$least, $most],
          formats: ($format | [.[]] | group_by(.) | map({(.[0]): length}) | add)}}

