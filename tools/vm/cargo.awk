# SPDX-License-Identifier: GPL-2.0
# Turns the output of `cargo test` into KTAP. A build that failed, or a test program that died, is a failure of its own.
# What a test writes to stderr can stand between its name and its result.
# Variable: status (cargo's exit status).
function count_test(result) {
	n++
	if (result ~ /^ok/) print "ok " n " " where " " name
	else if (result ~ /^ignored/) { sub(/^ignored,? */, "", result); print "ok " n " " where " " name " # SKIP " result }
	else { print "not ok " n " " where " " name; failed++ }
	name = ""
}
BEGIN { print "KTAP version 1" }
/^ *(Running|Doc-tests) / { where = $0; sub(/^ */, "", where); sub(/ \(.*/, "", where); sub(/^(Running|Doc-tests) /, "", where) }
/^test .* \.\.\. / {
	if (name != "") count_test("no result")
	name = $0
	sub(/^test /, "", name)
	result = name
	sub(/ \.\.\. .*/, "", name)
	sub(/^.* \.\.\. /, "", result)
	if (result ~ /^(ok|FAILED|ignored)/) count_test(result)
	next
}
name != "" && /^(ok|FAILED|ignored)/ { count_test($0) }
END {
	if (name != "") count_test("no result")
	if (status != 0 && !failed) { n++; print "not ok " n " cargo test" }
	print "1.." n
}
