# Makes the page of results.awk's files, one a kernel, named by KERNEL.tsv. Cells that don't apply have a note with the
# reason; of other suites only numbers are shown, and what failed.
BEGIN {
    FS = "\t"
    print "# Kernels"
    print ""
    print "Written by `make test-kernels`, which boots Debian's kernels in a virtual machine and runs the data path's tests in each."
    print ""
}
FNR == 1 {
    kernel = FILENAME
    sub(/.*\//, "", kernel)
    sub(/\.tsv$/, "", kernel)
    kernels[++n] = kernel
}
{
    row = $2
    if ($1 == "matrix") {
        if (!(row in listed)) { listed[row] = 1; rows[++height] = row }
        cell[row, kernel] = $3 == "n/a" ? "n/a" note($4) : $3
        next
    }
    if (!($1 in suite)) { suite[$1] = 1; suites[++width] = $1 }
    tally[$1, kernel, $3]++
    if ($3 == "n/a") because[$1, kernel] = note($4)
    if ($3 == "FAILED") failed[++failures] = "* " kernel ": " $1 " " $2 ($4 == "" ? "" : ": " $4)
}
function note(reason) {
    if (!(reason in number)) { number[reason] = ++notes; text[notes] = reason }
    return " (" number[reason] ")"
}
function heading(first,   i, rule) {
    rule = "|---"
    for (i = 1; i <= n; i++) { first = first " | " kernels[i]; rule = rule "|---" }
    print "| " first " |"
    print rule "|"
}
END {
    print "## Two nodes, real traffic"
    print ""
    heading("path / families / translation")
    for (i = 1; i <= height; i++) {
        line = "| " rows[i]
        for (k = 1; k <= n; k++) {
            value = cell[rows[i], kernels[k]]
            line = line " | " (value == "" ? "not run" : value)
        }
        print line " |"
    }
    print ""
    print "## The data path's other tests"
    print ""
    heading("suite")
    for (i = 1; i <= width; i++) {
        line = "| " suites[i]
        for (k = 1; k <= n; k++) {
            s = suites[i] SUBSEP kernels[k] SUBSEP
            value = ""
            if (tally[s "ok"]) value = value ", " tally[s "ok"] " ok"
            if (tally[s "FAILED"]) value = value ", " tally[s "FAILED"] " FAILED"
            if (tally[s "n/a"]) value = value ", " tally[s "n/a"] " n/a" because[suites[i], kernels[k]]
            line = line " | " (value == "" ? "not run" : substr(value, 3))
        }
        print line " |"
    }
    print ""
    for (i = 1; i <= failures; i++) print failed[i]
    for (i = 1; i <= notes; i++) print "(" i ") " text[i] (i < notes ? "  " : "")
    print ""
    print "All by nftables; the iptables backend isn't built yet."
}
