# What decoding a token costs, with the straight line through it: data, out, what, cpu, bandwidth and the line's a, b and r2 come
# from tests/bench/peers.
set terminal svg size 850,520 font 'Arial,14' background rgb '#ffffff' noenhanced
set output out
set encoding utf8
set border 3 lc rgb '#444444'
set tics nomirror out scale 0.6
set grid lc rgb '#e4e4e4' lt 1
set key top left Left reverse
set tmargin at screen 0.85
f(x) = a + b * x
if (what eq 'size') {
    set xrange [0:*]
    set title sprintf("Decode time of a token against the bytes it reads\n%s; int4-g128 with int4 head, random weights; each run scaled to %.0f GB/s by what it read", cpu, bandwidth)
    set offsets 0, graph 0.14, 0, 0 # room for the last name
    set xlabel 'GB read a token'
    line = sprintf('%.2f ms + %.1f ms a GB (%.1f GB/s), R² %.4f', a, b, 1e3 / b, r2)
} else {
    set xrange [0:*]
    set title sprintf("Decode time of a token against the tokens in the cache\n%s; shape of the default model, int4-g64 with int8 head, f16 cache", cpu)
    set xlabel 'depth (tokens in the cache)'
    line = sprintf('%.2f ms + %.2f ms a thousand tokens, R² %.4f', a, 1e3 * b, r2)
}
set yrange [0:*]
# Names in turn: small shapes below and above to the right, large ones above to the left and below to the right
stats data using 1 nooutput
place(i, x) = x < STATS_max / 4 ? 1 + i % 2 : i % 2 ? 1 : 3
name(k) = what eq 'size' && place(int(column(0)), column(1)) == k ? stringcolumn(5) : ''
set ylabel 'ms a token (median; bars: least and most)'
plot f(x) title line lc rgb '#777777' dt 2 lw 1.5, \
     data using 1:2:3:4 with yerrorbars notitle lc rgb '#0072b2' pt 7 ps 0.9 lw 1.4, \
     data using 1:2:(name(1)) with labels notitle offset character 1,-0.5 left textcolor rgb '#0072b2', \
     data using 1:2:(name(2)) with labels notitle offset character 1,0.8 left textcolor rgb '#0072b2', \
     data using 1:2:(name(3)) with labels notitle offset character -1,0.7 right textcolor rgb '#0072b2'
