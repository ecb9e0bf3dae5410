#!/bin/bash
# Runs the data path's tests inside a virtual machine, as its only program. Each suite's output stands between marks that
# results.awk knows.
#
# Usage: guest.sh ROOT FILTER, where ROOT has the tests, what they call, and a file `suites` with a line
# `SUITE PROGRAM NAME=VALUE…` for each suite.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C RUST_BACKTRACE=0
filter=$2
# Emulated, on a machine that may have other work.
export SPILLWAY_TEST_PATIENCE=8
# Only what is printed here, from here on.
dmesg -n 1
# At one go: each that the kernel asks for by itself is a program started over the emulated file system. Not every kernel
# has each of them as a module.
modprobe -aq tun vxlan wireguard veth bridge nf_tables nft_chain_nat nft_counter nft_ct nft_nat nft_masq nft_objref \
    nft_fib_inet nft_fib_ipv4 nft_fib_ipv6 nft_reject_inet nft_dynset nft_set_pipapo nf_conntrack_netlink
mount -t tmpfs -o size=2G tmpfs /mnt
cp -a "$1/." /mnt/
for directory in proc sys dev run; do mount --rbind "/$directory" "/mnt/$directory"; done
echo "@@ kernel $(uname -r)"
while read -r suite program settings; do
    echo "@@ suite $suite"
    # A test that hangs must not take the others along.
    # shellcheck disable=SC2086
    chroot /mnt /usr/bin/timeout 2400 env $settings "$program" --test-threads 2 --color never $filter 2>&1
    echo "@@ end $suite $?"
done < /mnt/suites
echo "@@ done"
