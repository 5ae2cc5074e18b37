# The figures of tests/bench/peers: rounds in, medians and ratios out, then a table and a verdict a row.
# kind: speed (ours over theirs), wall (theirs over ours: how many times as fast), share (ours over theirs, less is
# better), own (one value of ours alone). A row without a floor is shown only.

def rows: [
  {id: "small-decode", what: "default model, int4-g64 + int8 head: decode 64 tokens, depth 0", unit: "t/s", kind: "speed", floor: 1.5, goal: 2.2},
  {id: "small-decode-512", what: "the same at depth 512", unit: "t/s", kind: "speed", floor: 1.5, goal: 2.2},
  {id: "small-decode-4096", what: "the same at depth 4,096", unit: "t/s", kind: "speed", floor: 1.3, goal: 2},
  {id: "small-prefill", what: "default model, int4-g64 + int8 head: prefill 512", unit: "t/s", kind: "speed", floor: 1.8, goal: 2.5},
  {id: "f16-decode", what: "default model, f16: decode", unit: "t/s", kind: "speed", floor: 1.05, goal: 1.2},
  {id: "f16-prefill", what: "default model, f16: prefill 512", unit: "t/s", kind: "speed", floor: 1.0, goal: 1.3},
  {id: "int8-decode", what: "default model, int8-row + int8 head: decode", unit: "t/s", kind: "speed", floor: 1.3, goal: 1.8},
  {id: "int8-prefill", what: "default model, int8-row + int8 head: prefill 512", unit: "t/s", kind: "speed", floor: 1.8, goal: 2.5},
  {id: "int8x2-decode", what: "default model, int4-g64: decode with --compute int8x2 over int8", unit: "t/s", kind: "speed"},
  {id: "int8x2-prefill", what: "default model, int4-g64: prefill 512 with --compute int8x2 over int8", unit: "t/s", kind: "speed"},
  {id: "strided128", what: "default model: int4-strided128 decode over int4-g128 decode (int8 heads)", unit: "t/s", kind: "speed"},
  {id: "nf4", what: "default model: nf4 decode over int4-g64 decode (int8 heads)", unit: "t/s", kind: "speed", floor: 0.85, goal: 0.95},
  {id: "avx2-decode", what: "AVX2 forced, default model, int4-g64: decode", unit: "t/s", kind: "speed", floor: 1.0},
  {id: "avx2-prefill", what: "AVX2 forced, default model, int4-g64: prefill 512", unit: "t/s", kind: "speed", floor: 1.3},
  {id: "ppl-f16", what: "perplexity of 64 windows of WikiText-2, f16 (f32 compute)", unit: "s", kind: "wall", floor: 1.0, goal: 1.3},
  {id: "ppl-int4", what: "perplexity of 64 windows, int4-g64 (int8 compute)", unit: "s", kind: "wall", floor: 1.8, goal: 2.5},
  {id: "big-decode", what: "3B shape, int4-g128 + int4 head: decode", unit: "t/s", kind: "speed", floor: 1.05, goal: 1.3},
  {id: "big-fraction", of: "big-decode", field: "fraction", what: "3B shape: decode bytes/s over read bandwidth, same process", unit: "", kind: "own", floor: 0.80, goal: 0.92},
  {id: "big-rss", of: "big-decode", field: "rss_over", scale: 1e-6, what: "3B shape: peak RSS beyond the weights that decoding reads and the cache", unit: "MB", kind: "own", less: true, floor: 100, goal: 50},
  {id: "big-prefill", what: "3B shape, int4-g128 + int4 head: prefill 512", unit: "t/s", kind: "speed", floor: 1.7, goal: 2.1},
  {id: "big-peak", of: "big-peak", field: "value", what: "3B shape, prefill: integer operations over the vpdpbusd peak", unit: "", kind: "own", floor: 0.60, goal: 0.75},
  {id: "big-nf4", what: "3B shape: nf4 decode over int4-g128 decode (int4 heads)", unit: "t/s", kind: "speed", floor: 0.85, goal: 0.95},
  {id: "big-ik-decode", what: "3B shape, int4-g128 + int4 head: decode", unit: "t/s", kind: "speed", floor: 1.05, goal: 1.2},
  {id: "big-ik-prefill", what: "3B shape, int4-g128 + int4 head: prefill 512", unit: "t/s", kind: "speed", floor: 1.5, goal: 1.9},
  {id: "big-quant", what: "3B shape: qquant bf16 → int4-g128 (less is better)", unit: "s", kind: "share", less: true, floor: 0.5, goal: 0.25},
  {id: "gen2", of: "gen2", field: "value", what: "gen2 on the default model", unit: "min", kind: "own", less: true, floor: 5, goal: 3},
  {id: "gen1", of: "gen1", field: "value", what: "gen1 on the default model", unit: "min", kind: "own", less: true, floor: 10, goal: 6}
];

def median: sort | if length == 0 then null else (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2 end;
def summary: {n: length, median: median, min: min, max: max, samples: .};

# a row's rounds → its figures
def figures($rounds):
  . as $row
  | ($rounds | map(.members.qlab)) as $ours
  | (($rounds[0].members | keys - ["qlab"])[0]) as $peer
  | {git: ($rounds[-1].git), at: $rounds[-1].at,
     bandwidth: ([$ours[] | .bandwidth | numbers] | if length > 0 then summary else null end)}
    + if .kind == "own" then {value: ($ours | map(.[$row.field] * ($row.scale // 1)) | summary)}
      else ($rounds | map(.members[$peer])) as $theirs
      | {peer: $peer, qlab: ($ours | map(.value) | summary), theirs: ($theirs | map(.value) | summary),
         ratio: ([range($rounds | length)
                  | if $row.kind == "wall" then $theirs[.].value / $ours[.].value else $ours[.].value / $theirs[.].value end]
                 | summary)}
      + (if $ours[0].ppl then {ppl: {qlab: $ours[0].ppl, theirs: $theirs[0].ppl}} else {} end) end
  | . + ((.ratio // .value).median as $v
         | {reached: (if ($v | type) != "number" then "unknown"
                      elif $row.floor == null then "shown"
                      elif $row.goal and (if $row.less then $v <= $row.goal else $v >= $row.goal end) then "goal"
                      elif (if $row.less then $v <= $row.floor else $v >= $row.floor end) then "floor"
                      else "below" end)});

# [[x, y]…] → the least-squares line, R² and the point that lies farthest from it, off by a fraction of the line's value;
# null where two points are too few or lie above one another
def fit:
  . as $p | length as $n
  | if $n < 2 then null else
      (map(.[0]) | add / $n) as $mx | (map(.[1]) | add / $n) as $my
      | (map((.[0] - $mx) * (.[0] - $mx)) | add) as $xx | (map((.[0] - $mx) * (.[1] - $my)) | add) as $xy
      | (map((.[1] - $my) * (.[1] - $my)) | add) as $yy
      | if $xx == 0 then null else
          ($xy / $xx) as $b | ($my - $b * $mx) as $a
          | {intercept: $a, slope: $b, r2: (if $yy == 0 then 1 else $xy * $xy / ($xx * $yy) end)}
            + ($p | map({x: .[0], off: ((.[1] - $a - $b * .[0]) / ($a + $b * .[0]))}) | max_by(.off | fabs) | {worst: .})
        end
    end;
def size_xy: [.size[] | [.bytes / 1e9, .ms.median]];
def depth_xy: [.depth[] | [.depth, .ms.median]];

# Shapes are measured at different times, and a shared machine's bandwidth changes by the minute: every run's time is scaled
# to a common bandwidth by what its own process read around it.
def size_rounds: to_entries | map(select(.key | startswith("size-")));
def common_bandwidth: [size_rounds[].value[].members.qlab.bandwidth] | median;
def sizes($r):
  ($r | common_bandwidth) as $common
  | [$r | size_rounds[]
     | {shape: (.key | ltrimstr("size-")), bytes: .value[0].members.qlab.bytes,
        tps: (.value | map(.members.qlab.value) | summary),
        bandwidth: (.value | map(.members.qlab.bandwidth) | summary),
        ms: (.value | map(.members.qlab | 1e3 / .value * .bandwidth / $common) | summary)}] | sort_by(.bytes);

def report:
  .rounds as $r
  | {cpu, threads, compiler, builds,
     rows: [rows | to_entries[] | (.value + {nth: .key}) as $row | ($r[$row.of // $row.id] // []) | select(length > 0) as $rounds | $row + ($row | figures($rounds))],
     size: sizes($r), size_bandwidth: ($r | common_bandwidth),
     depth: ([$r.depth // [] | .[].members.qlab.token_ms[]] | group_by(.[0])
             | map({depth: .[0][0], ms: (map(.[1]) | summary)}))}
  | . + {size_fit: (size_xy | fit), depth_fit: (depth_xy | fit)};

def num: if type != "number" then "–" else fabs as $a | (if $a >= 100 then 1 elif $a >= 10 then 10 elif $a >= 1 then 100 else 1000 end) as $d
         | . * $d | round / $d | tostring end;
def peer_name: {"lc": "llama.cpp", "lc-clang": "llama.cpp (clang)", "lc-avx2": "llama.cpp (AVX2)", "lc-ik": "ik_llama.cpp"} as $n
  | split(" ") | [($n[.[0]] // .[0])] + .[1:] | join(" ");

def group: if startswith("big-") then "3B shape, random weights" elif test("^(ppl|gen)") then "Whole runs, default model"
  elif startswith("avx2-") then "Both sides held to AVX2" elif test("^(nf4|strided|int8x2)") then "Beside ourselves"
  else "Default model" end;
def fit_text($unit): "\(.intercept | num) ms + \(.slope | num) ms a \($unit), R² \(.r2 * 1e4 | floor / 1e4), no point more than \((.worst.off | fabs) * 100 | num) % off the line";

def rounds_text: [.rows[] | select(.id | startswith("gen") | not) | (.ratio // .value).n] | unique
  | if length > 1 then "\(min)–\(max)" else "\(.[0] // 1)" end;

def markdown:
  "| what | qlab | beside it | ratio (least – most) | GB/s |",
  "|---|---|---|---|---|",
  (.rows | group_by(.id | group) | sort_by(.[0].nth) | .[]
   | "| **\(.[0].id | group)** | | | | |",
   (.[] | "| \(.what) | \(if .kind == "own" then .value.median | num else .qlab.median | num end) \(.unit) | " +
     (if .kind == "own" then "– | \(.value.min | num) – \(.value.max | num)"
      else "\(.peer | peer_name) \(.theirs.median | num) | **\(.ratio.median | num)** (\(.ratio.min | num) – \(.ratio.max | num))" end) +
     " | \(if .bandwidth then .bandwidth.median / 1e9 | num else "–" end) |")),
  "",
  if .rows == [] then "No rounds yet." else "Medians of \(rounds_text) interleaved rounds\(if any(.rows[]; .id | startswith("gen")) then " (gen1, gen2: one run)" else "" end); \(.cpu), \(.threads) threads; GB/s: what qbench's process could read in the same rounds. qlab \([.rows[].git] | unique | join(", ")), \(.compiler)." end,
  (.size_fit | values | "Decoding a token, by shape (int4-g128; each run scaled to one bandwidth): \(fit_text("GB read"))."),
  (.depth_fit | values | "By tokens in the cache (default shape): \(.slope *= 1000 | fit_text("thousand tokens"))."),
  (.builds | to_entries[] | "\(.key | peer_name): \(.value.source), \(.value.compiler), \(.value.flags).");

def verdicts: (.rows[] | "\(.id)\t\((.ratio // .value).median | num)\tfloor \(.floor // "–") goal \(.goal // "–")\t\(.reached)\tn \((.ratio // .value).n)\t\(.peer // "")"),
  (.size_fit | values | "size\t\(fit_text("GB"))"),
  (.depth_fit | values | "depth\t\(.slope *= 1000 | fit_text("thousand tokens"))");

# x, y and the extremes of y, for peers.gp
def size_points: .size[] | "\(.bytes / 1e9) \(.ms.median) \(.ms.min) \(.ms.max) \(.shape)";
def depth_points: .depth[] | "\(.depth) \(.ms.median) \(.ms.min) \(.ms.max)";
