# SPDX-License-Identifier: GPL-2.0
# Draws what table.awk wrote as comma-separated values: for each figure that both kernels have, the cost with the Rust
# guest_memfd as a part of that with C's. Writes SVG for white and for black backgrounds.

function text(x, y, what, more) {
	gsub(/&/, "\\&amp;", what); gsub(/</, "\\&lt;", what)
	printf "<text x=\"%d\" y=\"%d\" %s>%s</text>\n", x, y, more, what
}

BEGIN { FS = ","; left = 470; unit = 320; row = 18; top = 48 }

$1 == "figure" && $11 != "" {
	names[++count] = $2
	ratio[count] = $11
	c[count] = $5
	rust[count] = $8
	per[count] = $3
}

END {
	if (!count) exit 1
	height = top + count * row + 12
	# The largest ratio that a bar shows; longer bars end there.
	longest = 1.25
	width = left + longest * unit + 150
	printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\">\n", width, height, width, height
	print "<title>Instructions with guest_memfd in Rust, as a part of those with guest_memfd in C</title>"
	printf "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", width, height
	text(8, 18, "Rust/C, instructions; C and Rust in numbers on the right", "font-weight=\"bold\"")
	for (at = 0; at <= longest + 0.001; at += 0.25) {
		x = left + at * unit
		printf "<line x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" stroke=\"%s\"/>\n", x, top - 10, x, height - 8, at == 1 ? "#444444" : "#d8d8d8"
		text(x, top - 14, sprintf("%.2f", at), "text-anchor=\"middle\" fill=\"#666666\"")
	}
	for (i = 1; i <= count; i++) {
		y = top + (i - 1) * row
		shown = ratio[i] < longest ? ratio[i] : longest
		colour = sprintf("%.2f", ratio[i]) + 0 <= 1 ? "#3a7d44" : "#b5532a"
		text(left - 8, y + 12, names[i], "text-anchor=\"end\" fill=\"#222222\"")
		printf "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", left, y + 2, shown * unit, row - 5, colour
		text(left + longest * unit + 8, y + 12, sprintf("%.2f   %.0f, %.0f", ratio[i], c[i], rust[i]), "fill=\"#222222\"")
	}
	print "</svg>"
}
