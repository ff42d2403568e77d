# SPDX-License-Identifier: GPL-2.0
# Reads what gmem_bench printed on the kernel with the C guest_memfd and on the one with the Rust guest_memfd (-v c=FILE,
# -v rust=FILE, each several runs one after another), and on the latter without trace events (-v untraced=FILE), prints a table and the goals, and writes both to -v csv=FILE.

function read(file, kernel,    line, f, name) {
	while ((getline line < file) > 0) {
		if (split(line, f, ",") != 6 || f[1] != "bench") continue
		name = f[2]
		if (!((kernel, name) in value)) {
			runs[kernel, name] = 0
			if (!(name in seen)) { seen[name] = 1; order[++count] = name }
		} else {
			# The largest relative distance between two runs of one figure.
			d = value[kernel, name] - f[4]
			if (d < 0) d = -d
			if (value[kernel, name] > 0 && d / value[kernel, name] > worst) {
				worst = d / value[kernel, name]
				worst_name = name " (" kernel ")"
			}
		}
		# The first run is the one that is shown, and of its repetitions the cheapest: it has the fewest timer
		# interrupts, which is all that repetitions differ in.
		if (runs[kernel, name]++ == 0) {
			value[kernel, name] = f[4]
			median[kernel, name] = f[5]
			high[kernel, name] = f[6]
			unit[name] = f[3]
		}
	}
	close(file)
}

# The C kernel's figure that a figure of the Rust kernel is to be compared with: its own if the C kernel has it.
function partner(name,    p) {
	if (("c", name) in value) return name
	p = name
	if (p ~ /^guest-fault\/private\/in-place/ || p ~ /^vcpu-run/) sub("in-place", "two-backings", p)
	else if (p ~ /^(guest-fault\/shared|host-fault|fallocate|punch)\/in-place/) sub("in-place", "shared-file", p)
	else if (p ~ /^round-trip\/in-place\/preserve-populated/) sub("in-place/preserve-populated", "two-backings/bytes-lost-populated", p)
	else if (p ~ /^round-trip\/in-place\/preserve/) sub("in-place/preserve", "two-backings/bytes-kept", p)
	else if (p ~ /^(round-trip|convert)\/in-place/) { sub("in-place", "two-backings", p); sub("/(preserve|zero|none)/", "/bytes-lost/", p) }
	return ("c", p) in value ? p : ""
}

function number(x) { return x == "" ? "-" : sprintf("%.1f", x) }

# goal TEXT NAME LIMIT: the ratio must not be above LIMIT, or the C kernel must need at least -LIMIT times as much.
function goal(text, name, limit,    p, r, met) {
	p = against != "" ? against : partner(name)
	if (!(("rust", name) in value) || !(("c", p) in value)) { result(text " " name, "not measured", "", "missed"); return }
	r = value["rust", name] / value["c", p]
	if (limit > 0) {
		met = sprintf("%.3f", r) + 0 <= limit
		result(text, name (p != name ? " against " p : ""), sprintf("%.3f", r), met ? "met" : "missed")
	} else {
		r = value["c", p] / value["rust", name]
		result(text, name " against " p, sprintf("%.2f", r), r >= -limit ? "met" : "missed")
	}
}

function result(text, name, figure, verdict) {
	printf "%-7s %-38s %9s  %s\n", verdict, text, figure, name
	printf "goal,%s,%s,%s,%s\n", text, name, figure, verdict >csv
	verdicts[verdict]++
}

BEGIN {
	read(c, "c")
	read(rust, "rust")
	read(untraced, "untraced")
	if (!count) { print "No figures." > "/dev/stderr"; exit 1 }

	printf "%-54s %12s %12s %7s  %s\n", "figure", "C", "Rust", "Rust/C", "unit"
	print "kind,name,unit,c_name,c_min,c_median,c_max,rust_min,rust_median,rust_max,ratio" >csv
	for (i = 1; i <= count; i++) {
		name = order[i]
		p = partner(name)
		has = ("rust", name) in value
		ratio = has && p != "" && value["c", p] > 0 ? sprintf("%.3f", value["rust", name] / value["c", p]) : ""
		printf "%-54s %12s %12s %7s  %s\n", name, p == "" ? "-" : number(value["c", p]), has ? number(value["rust", name]) : "-",
			ratio == "" ? "-" : ratio, unit[name] (p != "" && p != name ? ", C: " p : "")
		printf "figure,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s\n", name, unit[name], p,
			p == "" ? "" : value["c", p], p == "" ? "" : median["c", p], p == "" ? "" : high["c", p],
			has ? value["rust", name] : "", has ? median["rust", name] : "", has ? high["rust", name] : "", ratio >csv
	}

	printf "\n%-54s %12s %12s %7s\n", "trace events that are off", "compiled out", "off", "off/out"
	for (i = 1; i <= count; i++) {
		name = order[i]
		if (name !~ /^(guest-fault|host-fault|convert\/|populate\/.*map-memory)/ || !(("rust", name) in value)) continue
		if (!(("untraced", name) in value) || value["untraced", name] == 0) continue
		ratio = value["rust", name] / value["untraced", name]
		printf "%-54s %12.1f %12.1f %7.3f\n", name, value["untraced", name], value["rust", name], ratio
		printf "untraced,%s,%s,%s,%s,%.3f\n", name, unit[name], value["untraced", name], value["rust", name], ratio >csv
		if (ratio > most) { most = ratio; most_name = name }
	}

	print ""
	print "Goals:"
	if (most) result("trace events that are off: at most 1.01", most_name, sprintf("%.3f", most), sprintf("%.3f", most) + 0 <= 1.01 ? "met" : "missed")
	else result("trace events that are off: at most 1.01", "not measured", "", "missed")
	n = split("guest-fault/private/two-backings guest-fault/shared/shared-file guest-fault/private/in-place " \
		"guest-fault/shared/in-place host-fault/shared-file host-fault/in-place", faults, " ")
	for (i = 1; i <= n; i++) {
		goal("fault costs at most 1.00 of C", faults[i] "/first-use", 1.00)
		goal("fault costs at most 1.00 of C", faults[i] "/allocated", 1.00)
	}
	# The same VM has its shared memory elsewhere with C.
	against = "guest-fault/shared/two-backings/first-use"
	goal("fault costs at most 1.00 of C", "guest-fault/shared/in-place/first-use", 1.00)
	against = "guest-fault/shared/two-backings/allocated"
	goal("fault costs at most 1.00 of C", "guest-fault/shared/in-place/allocated", 1.00)
	m = split("one-call page-by-page", kinds, " ")
	for (i = 1; i <= m; i++) {
		against = "round-trip/two-backings/bytes-kept/" kinds[i]
		goal("round trip at least 3 times cheaper", "round-trip/in-place/preserve/" kinds[i], -3)
		against = "round-trip/two-backings/bytes-lost/" kinds[i]
		goal("round trip at least 3 times cheaper", "round-trip/in-place/preserve/" kinds[i], -3)
	}
	# The largest request that was made, against the faults of the same kernel.
	against = ""
	for (i = 1; i <= count; i++) {
		if (order[i] !~ /^populate\/.*\/map-memory\/1-pages$/ || order[i] ~ /-2M/) continue
		split(order[i], part, "/")
		fault = "guest-fault/" part[2] "/" part[3] "/allocated"
		largest = order[i]
		for (k = i; k <= count && order[k] ~ "^populate/" part[2] "/" part[3] "/map-memory/"; k++) largest = order[k]
		if (!(("rust", fault) in value)) continue
		r = value["rust", largest] / value["rust", fault]
		result("populating at most 0.40 of a fault", largest " against " fault, sprintf("%.3f", r),
			sprintf("%.3f", r) + 0 <= 0.40 ? "met" : "missed")
	}
	for (i = 1; i <= count; i++)
		if (order[i] ~ /^convert-empty-1TiB/ && ("rust", order[i]) in value)
			result("empty 1 TiB below 20000 instructions", order[i], sprintf("%.0f", value["rust", order[i]]),
				value["rust", order[i]] < 20000 ? "met" : "missed")
	for (i = 1; i <= count; i++)
		if (order[i] ~ /^longest-wait\/.*runs$/ && ("rust", order[i]) in value)
			result("freeing runs keeps no CPU for 1 ms", order[i], sprintf("%.0f", value["rust", order[i]]),
				value["rust", order[i]] < 1000000 ? "met" : "missed")
	printf "%d goals met, %d missed\n", verdicts["met"], verdicts["missed"]
	if (again > 1) {
		printf "Between runs no figure differs by more than %.2f%%%s\n", worst * 100, (worst > 0 ? ": " worst_name : "")
		printf "repeatability,%s,%.5f\n", worst_name, worst >csv
	}
}
