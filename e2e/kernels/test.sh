#!/bin/bash
# Boots Debian's kernels in a virtual machine, with this machine's files as its own, and runs the data path's tests in
# each. Prints the table and writes it to docs/reference/kernels.md if all of it was run.
#
# Usage: test.sh [KERNEL [SUITE]], such as `test.sh 5.10 matrix`. Needs root, and the tests built.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"
only=${1:-}
suite_wanted=${2:-}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spillway
out=$root/target/kernels
# Kernel and the Debian release that has it.
kernels=("5.10 bullseye" "6.1 bookworm" "6.12 trixie")
virtme=1.42
python=$cache/tools/virtme-ng-$virtme

install_tools() {
    local missing=()
    command -v qemu-system-x86_64 > /dev/null || missing+=(qemu-system-x86)
    command -v busybox > /dev/null || missing+=(busybox-static)
    command -v depmod > /dev/null || missing+=(kmod)
    command -v tcpdump > /dev/null || missing+=(tcpdump)
    command -v conntrack > /dev/null || missing+=(conntrack)
    command -v file > /dev/null || missing+=(file)
    if [ ${#missing[@]} -gt 0 ]; then
        echo "Installing ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${missing[@]}"
    fi
    if [ ! -x "$python/bin/virtme-run" ]; then
        echo "Installing virtme-ng $virtme into $python"
        python3 -m venv "$python"
        "$python/bin/pip" install --quiet "virtme-ng==$virtme"
    fi
}

# What the tests call.
tools=(bash bridge cat chroot conntrack cut env grep head ip ls nft ping printf rm sed sh sleep sort stdbuf sysctl tail
    tcpdump timeout uname)

# A small root for the tests, which the guest copies into its memory: over the emulated file system a program takes seconds
# to start. Copies, so that a build may go on meanwhile. Lists the suites, as guest.sh reads them.
pack() {
    local tree=$out/root tool library suite program
    rm -rf "$tree"
    mkdir -p "$tree"/{dev,etc,proc,root,run,sys,tests,tmp,usr/{bin,lib,lib64,libexec,sbin}}
    for tool in bin sbin lib lib64; do ln -s "usr/$tool" "$tree/$tool"; done
    for tool in "${tools[@]}"; do cp -L "$(type -P "$tool")" "$tree/usr/bin/$tool"; done
    cp -a --parents /etc/{group,iproute2,ld.so.cache,passwd,protocols,services} "$tree"
    cp -a --parents /usr/libexec/coreutils "$tree"
    cargo test --workspace --no-run 2>&1 | sed -n 's/.*Executable tests\/\([a-z_]*\)\.rs (\(.*\))$/\1 \2/p' |
        while read -r suite program; do
            case $suite in
            matrix | snat_mode | stateless_mode | failover | connections | drift | drivers | table)
                echo "$suite /tests/$suite SPILLWAY_TEST_WIREGUARD=userspace"
                ;;
            encrypted | behind_nat)
                echo "$suite/kernel-wireguard /tests/$suite SPILLWAY_TEST_WIREGUARD=kernel"
                echo "$suite/userspace-wireguard /tests/$suite SPILLWAY_TEST_WIREGUARD=userspace"
                ;;
            *) continue ;;
            esac
            [[ $suite == ${suite_wanted:-*} ]] || continue
            strip -o "$tree/tests/$suite" "$program"
        done > "$out/all"
    ldd "$tree"/usr/bin/* "$tree"/tests/* | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-linux[^ ]*\).*/\1/p' |
        sort -u | while read -r library; do
        mkdir -p "$tree$(dirname "$library")"
        cp -L "$library" "$tree$library"
    done
    grep -E "^${suite_wanted:-.}" "$out/all" > "$tree/suites"
}

# The machine ends with the command, whose output is on its console. It is emulated also where there is KVM: one that is
# itself in a virtual machine may hang, and what is measured here isn't speed.
boot() {
    local directory=$1 command=$2 image
    image=$(echo "$directory"/boot/vmlinuz-*)
    timeout --kill-after 10 10800 "$python/bin/virtme-run" --kimg "$image" --mods auto --memory 3G --cpus 2 \
        --disable-kvm --force-9p --show-boot-console --script-sh "$command" < /dev/null
}

install_tools
mkdir -p "$out"
pack
# The guest has the modules of its kernel mounted there.
made=
if [ ! -d /lib/modules ]; then
    mkdir /lib/modules
    made=yes
fi
trap '[ -z "$made" ] || rmdir --ignore-fail-on-non-empty /lib/modules' EXIT
failed=0
for entry in "${kernels[@]}"; do
    read -r kernel release <<< "$entry"
    [ -z "$only" ] || [ "$only" = "$kernel" ] || continue
    directory=$cache/kernels/$release
    "$here/fetch.sh" "$release" "$directory"
    log=$out/$kernel.log
    echo "Linux $kernel: $(wc -l < "$out/root/suites") suites, as $log tells"
    began=$SECONDS
    boot "$directory" "$here/guest.sh $out/root '${TEST:-}'" > "$log" 2>&1 || true
    awk -f "$here/results.awk" "$log" | sort > "$out/$kernel.tsv"
    if ! grep -q '^@@ done' "$log"; then
        printf '(the machine)\tall\tFAILED\tit ended early: see %s\n' "$log" >> "$out/$kernel.tsv"
    fi
    cut -f 3 "$out/$kernel.tsv" | sort | uniq -c | tr '\n' ' '
    echo "in $((SECONDS - began)) s"
    ! grep -qP '\tFAILED\t' "$out/$kernel.tsv" || failed=1
done
files=()
for entry in "${kernels[@]}"; do
    read -r kernel release <<< "$entry"
    [ -z "$only" ] || [ "$only" = "$kernel" ] || continue
    files+=("$out/$kernel.tsv")
done
awk -f "$here/table.awk" "${files[@]}" | tee "$out/kernels.md"
if [ -z "$only$suite_wanted${TEST:-}" ] && [ $failed = 0 ]; then
    cp "$out/kernels.md" docs/reference/kernels.md
fi
exit $failed
