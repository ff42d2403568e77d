# SPDX-License-Identifier: GPL-2.0
# Reads what gmem_bench printed on the kernel with the C guest_memfd and on the one with the Rust guest_memfd (-v c=FILE,
# -v rust=FILE, each several runs one after another), and on the latter without trace events (-v untraced=FILE), prints a
# table and the goals, and writes both to -v csv=FILE. With -v figures_only=1 there is the table only.

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
		# The first run is shown, and of its repetitions the cheapest: it has the fewest timer
		# interrupts, the only difference between repetitions.
		if (runs[kernel, name]++ == 0) {
			value[kernel, name] = f[4]
			median[kernel, name] = f[5]
			high[kernel, name] = f[6]
			unit[name] = f[3]
		}
	}
	close(file)
}

# The C kernel's figure that a figure of the Rust kernel is to be compared with: its own if the C kernel has it. A VM that
# has both kinds of memory in one file has its shared memory elsewhere with C: C's private fault is compared with both.
function partner(name,    p) {
	if (("c", name) in value) return name
	p = name
	if (p ~ /^guest-fault\/shared\/in-place/) sub("shared/in-place", "private/two-backings", p)
	else if (p ~ /^guest-fault\/private\/in-place/ || p ~ /^vcpu-run/) sub("in-place", "two-backings", p)
	else if (p ~ /^(host-fault|fallocate|punch)\/in-place/) sub("in-place", "shared-file", p)
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

# under TEXT NAME LIMIT: so many instructions at most.
function under(text, name, limit) {
	if (!(("rust", name) in value)) { result(text " " name, "not measured", "", "missed"); return }
	result(text " at most " limit, name, sprintf("%.0f", value["rust", name]), value["rust", name] < limit + 0.5 ? "met" : "missed")
}

# The largest number of pages that one call has populated.
function largest_of(kind,    i, part, most) {
	for (i = 1; i <= count; i++)
		if (index(order[i], "populate/" kind "/map-memory/") == 1) {
			split(order[i], part, "/")
			if (part[5] + 0 > most) most = part[5] + 0
		}
	return most
}

function result(text, name, figure, verdict) {
	printf "%-7s %-38s %9s  %s\n", verdict, text, figure, name
	printf "goal,%s,%s,%s,%s\n", text, name, figure, verdict >csv
	verdicts[verdict]++
}

BEGIN {
	read(c, "c")
	read(rust, "rust")
	if (untraced != "") read(untraced, "untraced")
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

	if (figures_only) exit

	printf "\n%-54s %12s %12s %7s\n", "trace events that are off", "compiled out", "off", "off/out"
	for (i = 1; i <= count; i++) {
		name = order[i]
		if (name !~ /^(guest-fault|host-fault|convert\/|populate\/.*map-memory)/ || !(("rust", name) in value)) continue
		if (!(("untraced", name) in value) || value["untraced", name] == 0) continue
		ratio = value["rust", name] / value["untraced", name]
		printf "%-54s %12.1f %12.1f %7.3f\n", name, value["untraced", name], value["rust", name], ratio
		printf "untraced,%s,%s,%s,%s,%.3f\n", name, unit[name], value["untraced", name], value["rust", name], ratio >csv
		# With two backings a fault may map what happens to be in one piece, on one kernel and not on the other.
		if (name !~ /-fault\/.*\/allocated/ || name ~ /two-backings/) continue
		events = value["rust", name] - value["untraced", name]
		if (most_name == "" || events > most) { most = events; most_name = name }
	}

	print ""
	print "Goals:"
	if (most_name != "") result("trace events that are off: at most 8", most_name, sprintf("%.1f", most), most < 8.5 ? "met" : "missed")
	else result("trace events that are off: at most 8", "not measured", "", "missed")
	n = split("guest-fault/private/two-backings guest-fault/shared/shared-file guest-fault/private/in-place " \
		"guest-fault/shared/in-place host-fault/shared-file host-fault/in-place", faults, " ")
	for (i = 1; i <= n; i++) {
		goal("fault costs at most 1.00 of C", faults[i] "/first-use", 1.00)
		goal("fault costs at most 1.00 of C", faults[i] "/allocated", 1.00)
	}
	# Where no page is next to another one that is mapped, each takes a fault.
	against = "guest-fault/private/two-backings/allocated-apart"
	goal("lone fault costs at most 1.00 of C", "guest-fault/private/in-place/allocated-apart", 1.00)
	goal("lone fault costs at most 1.00 of C", "guest-fault/shared/in-place/allocated-apart", 1.00)
	against = ""
	goal("lone fault costs at most 1.00 of C", "guest-fault/shared/shared-file/allocated-apart", 1.00)
	goal("lone fault costs at most 0.90 of C", "host-fault/in-place/allocated-apart", 0.90)
	under("guest goes through memory:", "guest-fault/private/in-place/allocated", 750)
	under("guest goes through memory:", "guest-fault/shared/in-place/allocated", 750)
	under("host goes through memory:", "host-fault/in-place/allocated", 650)
	under("to private, one call:", "convert/in-place/to-private/preserve/one-call", 900)
	under("to private, page by page:", "convert/in-place/to-private/preserve/page-by-page", 7200)
	under("to shared, one call:", "convert/in-place/to-shared/preserve/one-call", 243)
	under("to shared, page by page:", "convert/in-place/to-shared/preserve/page-by-page", 4240)
	under("round trip, one call:", "round-trip/in-place/preserve/one-call", 3500)
	under("round trip, page by page:", "round-trip/in-place/preserve/page-by-page", 25000)
	against = "round-trip/two-backings/bytes-kept/one-call"
	goal("round trip at least 6 times cheaper", "round-trip/in-place/preserve/one-call", -6)
	against = ""
	under("KVM_MAP_MEMORY, many:", "populate/private/in-place/map-memory/" largest_of("private/in-place") "-pages", 600)
	under("KVM_MAP_MEMORY, a page:", "populate/private/in-place/map-memory/1-pages", 2972)
	goal("punching costs at most 1.00 of C", "punch/shared-file/allocated", 1.00)
	goal("punching costs at most 1.00 of C", "punch/shared-file/one-empty-page", 1.00)
	goal("allocating costs at most 1.00 of C", "fallocate/shared-file/allocated", 1.00)
	under("moving a page, copy + 6000:", "move/in-place/both-mapped", int(value["rust", "move/copy"]) + 6000)
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
