# Reads `go test -json` and prints what `go test` prints: a line per package and the
# whole output of what failed, and what tests log after "figures:". Then the skipped
# tests with their reasons, the failed tests, and "N passed, N failed, N skipped".

function value(key,    at, rest) {
	at = index($0, "\"" key "\":\"")
	if (!at) return ""
	rest = substr($0, at + length(key) + 4)
	# Output is the last key; the others hold no quotes.
	if (key == "Output") { sub(/"}$/, "", rest); return plain(rest) }
	return substr(rest, 1, index(rest, "\"") - 1)
}

function plain(s) {
	gsub(/\\\\/, "\001", s); gsub(/\\n/, "\n", s); gsub(/\\t/, "\t", s); gsub(/\\r/, "", s); gsub(/\\"/, "\"", s)
	gsub(/\\u003c/, "<", s); gsub(/\\u003e/, ">", s); gsub(/\\u0026/, "\\&", s); gsub(/\\u001b/, "", s); gsub("\001", "\\", s)
	return s
}

{ action = value("Action"); package = value("Package"); test = value("Test"); key = package " " test }

!/^{/ { print; fflush(); next }

action == "build-output" { printf "%s", value("Output"); fflush(); next }

action == "output" && test == "" {
	text = value("Output")
	# What the closing line of the package says anyway. A failed package needs its seed.
	if (text ~ /^PASS\n/) next
	if (text ~ /^-test.shuffle /) { shuffle[package] = text; next }
	if (text ~ /^FAIL\t/) printf "%s", shuffle[package]
	printf "%s", text; fflush()
	next
}

# Measured values, for whoever reads the run.
action == "output" && match(value("Output"), /figures: .*/) { printf "%s: %s\n", test, substr(value("Output"), RSTART + 9); fflush() }

action == "output" { output[key] = output[key] value("Output"); next }

action == "pass" && test != "" { passed++; delete output[key]; next }

action == "fail" && test != "" {
	failed++
	failures[failed] = key
	printf "%s", output[key]; fflush()
	delete output[key]
	next
}

# A panic or a timeout ends the package in the middle of tests.
action == "fail" && test == "" {
	for (k in output) if (index(k, package " ") == 1) { printf "%s", output[k]; unfinished[k] = 1; delete output[k] }
	fflush()
	next
}

action == "skip" && test != "" {
	skipped++
	reason = output[key]
	gsub(/=== [A-Z]+ [^\n]*\n/, "", reason); gsub(/--- SKIP[^\n]*\n/, "", reason); gsub(/^[ \n]+|[ \n]+$/, "", reason)
	gsub(/\n */, "\n        ", reason)
	skips[skipped] = key "\n        " reason
	delete output[key]
	next
}

END {
	if (skipped) {
		printf "\n%d SKIPPED, and why:\n", skipped
		for (i = 1; i <= skipped; i++) printf "    %s\n", skips[i]
	}
	for (k in unfinished) failures[++failed] = k " (did not end)"
	if (failed) {
		printf "\nFAILED:\n"
		for (i = 1; i <= failed; i++) printf "    %s\n", failures[i]
	}
	printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped
}
