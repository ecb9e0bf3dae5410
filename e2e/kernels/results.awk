# Makes lines `suite TAB test TAB result TAB reason` of what guest.sh printed. A test that fails because it doesn't apply
# to the kernel says so in its own words; a suite that didn't come to its end has failed, whatever its tests said.
BEGIN { OFS = "\t" }
{ sub(/\r$/, "") }
/^@@ suite / { suite = $3; next }
/^@@ end / { if ($4 != 124) ended[$3] = 1; suite = ""; detail = ""; next }
suite == "" { next }
{ seen[suite] = 1 }
match($0, /^test +(\[.*\] +)?[^ ]+ +\.\.\. (ok|FAILED|ignored)/) {
    line = $0
    reason = ""
    sub(/^test +/, "", line)
    if (match(line, /^\[.*\] +/)) {
        reason = substr(line, 2, RLENGTH - 2)
        line = substr(line, RLENGTH + 1)
        sub(/\] *$/, "", reason)
    }
    split(line, word, / +/)
    key = suite OFS word[1]
    order[++count] = key
    result[key] = line ~ /\.\.\. ok/ ? "ok" : line ~ /\.\.\. ignored/ ? "n/a" : "FAILED"
    why[key] = reason
    next
}
/^---- .* ----$/ { detail = suite OFS $2; next }
detail != "" && match($0, /doesn't apply: .*/) {
    result[detail] = "n/a"
    why[detail] = substr($0, RSTART + 15)
}
END {
    for (i = 1; i <= count; i++) print order[i], result[order[i]], why[order[i]]
    for (s in seen) if (!(s in ended)) print s, "(the suite)", "FAILED", "it didn't come to its end, or not in time"
}
