# SPDX-License-Identifier: GPL-2.0
# Reads what one test printed and writes one line a result, tab separated: pass|fail|skip, name, reason.
# Variables: test (its name), status (its exit status, 124 and above 128 included), want (1: KTAP must be there).
#
# Results are "ok"/"not ok" lines at any indentation. A result that follows deeper ones sums them up and is counted only
# when it fails although none of them did. A plan ("1..N") that is not fulfilled is a failure: something died.
function emit(kind, name, why) { print kind "\t" test (name == "" ? "" : ": " name) "\t" why; count[kind]++ }
function indent_of(s) { match(s, /^ */); return RLENGTH }

{
	sub(/\r$/, "")
	last = /[^ \t]/ ? $0 : last
	line = $0
	sub(/^\[ *[0-9]+\.[0-9]+\] /, "", line)
	gsub(/\t/, "        ", line)
	indent = indent_of(line)
	text = substr(line, indent + 1)
}

text ~ /^1\.\.[0-9]+/ {
	seen = 1
	n = text
	sub(/^1\.\./, "", n)
	# A plan may close its results instead of opening them; a second one opens the next document.
	if (indent in plan) {
		if (got[indent] < plan[indent]) emit("fail", "", "only " got[indent] " of " plan[indent] " tests reported")
		got[indent] = 0
	}
	plan[indent] = n + 0
	if (n + 0 == 0) {
		why = text
		if (sub(/.*# *[Ss][Kk][Ii][Pp][:]? */, "", why)) { emit("skip", "", why == "" ? "no reason given" : why); skipped_all = 1 }
	}
	next
}

text ~ /^(not )?ok [0-9]+/ {
	seen = 1
	bad = text ~ /^not ok/
	name = text
	sub(/^(not )?ok [0-9]+ *(- )?/, "", name)
	why = ""
	skip = match(name, /# *[Ss][Kk][Ii][Pp]/)
	if (skip) {
		why = substr(name, RSTART + RLENGTH)
		name = substr(name, 1, RSTART - 1)
		sub(/^[: ]+/, "", why)
	}
	sub(/ *#.*$/, "", name)
	sub(/ +$/, "", name)
	got[indent]++
	deeper = deeper_bad = 0
	for (i in results) if (i + 0 > indent && results[i]) {
		deeper += results[i]
		deeper_bad += bads[i]
		if (i in plan && got[i] != plan[i] && !deeper_bad) {
			emit("fail", name, "only " got[i] " of " plan[i] " subtests reported")
			deeper_bad++
		}
		results[i] = bads[i] = 0
		delete plan[i]
		got[i] = 0
	}
	results[indent]++
	if (bad && !skip) bads[indent]++
	if (deeper) {
		if (bad && !deeper_bad) emit("fail", name, "failed although its subtests did not")
		next
	}
	if (skip) emit("skip", name, why == "" ? "no reason given" : why)
	else if (bad) emit("fail", name, detail)
	else emit("pass", name, "")
	detail = ""
	next
}

# What explains the next failure: the assertion's own words.
text ~ /Test Assertion Failure|EXPECTATION FAILED|ASSERTION FAILED|Expected|panicked at/ && detail == "" { detail = text }

END {
	if (status == "timeout") { emit("fail", "", "timed out; the last line was: " last); exit }
	if (!seen) {
		if (want) emit("fail", "", "printed no KTAP; the last line was: " last)
		else if (status == 0) emit("pass", "", "")
		else if (status == 4) emit("skip", "", last == "" ? "no reason given" : last)
		else emit("fail", "", "exit status " status "; the last line was: " last)
		exit
	}
	incomplete = 0
	for (i in plan) if (got[i] < plan[i] && !(skipped_all && plan[i] == 0)) {
		emit("fail", "", "only " got[i] " of " plan[i] " tests reported (exit status " status "); the last line was: " last)
		incomplete = 1
	}
	if (status != 0 && status != 4 && !count["fail"] && !incomplete)
		emit("fail", "", "exit status " status " although no test of it failed; the last line was: " last)
}
